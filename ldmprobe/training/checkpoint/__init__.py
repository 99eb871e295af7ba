"""Checkpoints: what they say of their model, how they are written whole, read, and resumed from."""
