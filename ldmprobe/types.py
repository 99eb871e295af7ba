"""Names for the untyped mappings that data, configurations and checkpoints consist of."""

from __future__ import annotations

from typing import Any

PlainValues = dict[str, Any]
"""Nested plain values by name, such as JSON and YAML hold: descriptions, settings, provenance."""

Batch = dict[str, Any]
"""The columns of a batch, or of one sample or row, by name: "image", "label", "caption", "index", …"""

StateDict = dict[str, Any]
"""The state of a module, a callback or a whole checkpoint, by name."""
