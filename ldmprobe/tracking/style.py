"""Colours and words of every figure, so that the page, W&B and the paper's figures look alike."""

from __future__ import annotations

IDEAL = "#1b1f24"
FORWARD = "#8a8f98"
REAL = "#b4b9c2"
ACCENT = "#3b6fd4"
WARNING = "#c2453d"
# Training step, early to late: perceptually even (viridis, without its palest yellow).
STEP_COLOURS = ["#440154", "#472f7d", "#39568c", "#2a788e", "#1f988b", "#35b779", "#8bd646"]
# Ten classes, told apart by hue and lightness.
CLASS_COLOURS = [
    "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#d4b106", "#b07aa1", "#ff9da7", "#9c755f", "#5c6068",
]  # fmt: skip


def step_colour(position: float) -> str:
    """The colour of a training step at ``position`` 0 (first) … 1 (last)."""
    import matplotlib.colors as colours

    scale = colours.LinearSegmentedColormap.from_list("steps", STEP_COLOURS)
    return colours.to_hex(scale(position))


def class_colour(label: int) -> str:
    return CLASS_COLOURS[label % len(CLASS_COLOURS)]
