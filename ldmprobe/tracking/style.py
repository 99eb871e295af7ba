"""Colors of every figure, so that the page, W&B and the paper's figures look alike."""

from __future__ import annotations

import numpy as np

IDEAL = "#1b1f24"
FORWARD = "#8a8f98"
BESIDE = [FORWARD, "#c9822b", "#8c5aa8"]  # of the curves beside an ideal, in turn
REAL = "#b4b9c2"
ACCENT = "#3b6fd4"
WARNING = "#c2453d"
# Training step, early and pale to late and dark: perceptually even (viridis, without its palest yellow).
STEP_COLORS = ["#8bd646", "#35b779", "#1f988b", "#2a788e", "#39568c", "#472f7d", "#440154"]
# From far off on the bad side, over white, to far off on the good side.
DIVERGING = ["#b2182b", "#ef8a62", "#fddbc7", "#ffffff", "#d1e5f0", "#67a9cf", "#2166ac"]
# Ten classes, told apart by hue and lightness.
CLASS_COLORS = [
    "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#d4b106", "#b07aa1", "#ff9da7", "#9c755f", "#5c6068",
]  # fmt: skip


def step_color(position: float) -> str:
    """Return the color of a training step at ``position`` 0 (first) … 1 (last)."""
    channels = np.array([rgb(color) for color in STEP_COLORS])
    stops = np.linspace(0, 1, len(STEP_COLORS))
    red, green, blue = (round(np.interp(position, stops, channel)) for channel in channels.T)
    return f"#{red:02x}{green:02x}{blue:02x}"


def class_color(label: int) -> str:
    """Return the color of a class, or of the run of that number."""
    return CLASS_COLORS[label % len(CLASS_COLORS)]


def rgb(color: str) -> tuple[int, int, int]:
    """Return red, green and blue of "#rrggbb", 0 to 255."""
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue
