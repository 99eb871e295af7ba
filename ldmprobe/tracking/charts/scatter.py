"""PCA scatters with a slider over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.layout import finish, short
from ldmprobe.tracking.figures import level_names
from ldmprobe.tracking.history import thinned
from ldmprobe.tracking.style import ACCENT, REAL, class_colour

FRAMES, POINTS = 16, 512  # at most, of a slider over training; and samples per noise level


def pca_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """PCA scatters at several noise levels, with a slider over training, of at most ``FRAMES`` records and ``POINTS`` samples."""
    records = thinned(records, FRAMES)
    first = records[-1]
    scatters, real = first.scatters["pca"], first.scatters.get("pca_real")
    columns = min(3, len(scatters))
    rows = -(-len(scatters) // columns)
    titles = level_names(scatters)
    figure = make_subplots(
        rows, columns, subplot_titles=titles, horizontal_spacing=0.06, vertical_spacing=0.14 if rows > 1 else 0.1
    )
    labels = first.provenance.get("sample_labels")
    colours = [class_colour(label) for label in labels] if labels else ACCENT
    hover = [f"sample {i}, class {label}" for i, label in enumerate(labels)] if labels else None
    places = [(i // columns + 1, i % columns + 1) for i in range(len(scatters))]
    for i, place in enumerate(places):
        if real:
            figure.add_trace(_points(real[i].xy, REAL, 4, 0.55, "real latents"), *place)
    moving = []
    for i, place in enumerate(places):
        moving.append(len(figure.data))
        figure.add_trace(_points(scatters[i].xy, colours, 5.5, 0.9, "samples", hover), *place)
        # Early samples may lie far outside; the frame is that of real latents and the last samples.
        framed = np.concatenate([scatters[i].xy, *([real[i].xy] if real else [])])
        limit = float(1.1 * np.nanmax(np.abs(framed), initial=0.1))
        figure.update_xaxes(range=[-limit, limit], row=place[0], col=place[1])
        figure.update_yaxes(range=[-limit, limit], row=place[0], col=place[1])
    figure.frames = [
        go.Frame(
            name=str(record.step),
            traces=moving,
            data=[go.Scatter(x=short(s.xy[:POINTS, 0]), y=short(s.xy[:POINTS, 1])) for s in record.scatters["pca"]],
        )
        for record in records
    ]
    figure = finish(figure, "", "")
    figure.update_layout(
        height=330 * rows + 110,
        showlegend=False,
        margin={"t": 40, "b": 20},
        sliders=[_slider([r.step for r in records])],
    )
    figure.update_annotations(font={"size": 12.5, "color": "#4a4f57"})
    return figure


def _points(
    xy: np.ndarray, colour: Any, size: float, opacity: float, name: str, hover: list[str] | None = None
) -> go.Scattergl:
    return go.Scatter(
        x=short(xy[:POINTS, 0]),
        y=short(xy[:POINTS, 1]),
        mode="markers",
        name=name,
        text=hover[:POINTS] if hover else None,
        hoverinfo="text" if hover else "skip",
        marker={
            "color": colour if isinstance(colour, str) else colour[:POINTS],
            "size": size,
            "opacity": opacity,
            "line": {"width": 0},
        },
    )


def _slider(steps: Sequence[int]) -> dict[str, Any]:
    return {
        "active": len(steps) - 1,
        "currentvalue": {"prefix": "training step ", "font": {"size": 13}},
        "pad": {"t": 36, "b": 6},
        "bgcolor": "#dfe3e8",
        "bordercolor": "#dfe3e8",
        "activebgcolor": ACCENT,
        "steps": [
            {
                "label": f"{step:,}",
                "method": "animate",
                "args": [
                    [str(step)],
                    {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 250}},
                ],
            }
            for step in steps
        ],
    }
