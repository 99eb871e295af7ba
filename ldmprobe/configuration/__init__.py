"""A run from a YAML file: what it may name, what is built from it, what is saved of it."""
