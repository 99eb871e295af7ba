"""Probes: look at a model without disturbing it, and return a ProbeRecord."""
