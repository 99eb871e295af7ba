"""A study's two figures: where methods end, and how they get there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ldmprobe.tracking.style import CLASS_COLORS, FORWARD, IDEAL
from study.statistics import BOUND, FID, SECONDS, Study, StudyRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Without the gray, to which the baseline's black is too near.
_COLORS = [*CLASS_COLORS[:9], "#6a3fd0"]
_NAMES = {BOUND: "held-out bound, nats", FID: "FID"}


def pareto_figure(study: Study) -> Figure:
    """Final bound against final FID, a point a method, with 95 % intervals over seeds; the Pareto front as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    axis = figure.subplots()
    for method in study.methods:
        x, y = (method.final[metric] for metric in (BOUND, FID))
        if not (np.isfinite(x.value) and np.isfinite(y.value)):
            continue
        color = _color(study, method.name)
        axis.errorbar(
            x.value, y.value, np.nan_to_num(y.half_width), np.nan_to_num(x.half_width),
            fmt="o", ms=8, mfc=color if method.on_front else "white", color=color, elinewidth=0.7, alpha=0.9,
            label=method.name,
        )  # fmt: skip
    front = sorted((float(m.final[BOUND].value), float(m.final[FID].value)) for m in study.methods if m.on_front)
    axis.step(*zip(*front, strict=True), where="post", color=FORWARD, lw=1, ls="--", zorder=0)
    _dress(axis, _NAMES[BOUND], _NAMES[FID])
    figure.suptitle(
        "Where training ends (lower left is better; filled: Pareto front; bars: 95 % over seeds)", fontsize=11
    )
    figure.legend(loc="outside right center", frameon=False, fontsize=8.5)
    return figure


def curves_figure(study: Study) -> Figure:
    """Bound and FID over optimizer steps and over seconds of training, mean over seeds; dotted: where the baseline
    ends.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row", sharex="col")
    for row, metric in zip(axes, (BOUND, FID), strict=True):
        for method in study.methods:
            runs = [run for run in study.runs if run.method == method.name]
            steps, seconds, values = _mean_curve(runs, metric)
            baseline = method.name == study.baseline
            for axis, where in zip(row, (steps, seconds), strict=True):
                axis.plot(
                    where, values, color=_color(study, method.name), lw=2.2 if baseline else 1.3,
                    label=method.name if axis is axes[0, 0] else None, zorder=3 if baseline else 2,
                )  # fmt: skip
                if baseline:
                    axis.axhline(values[-1], color=IDEAL, lw=0.8, ls=":")
        _dress(row[0], "optimizer steps" if metric == FID else "", _NAMES[metric])
        _dress(row[1], "seconds of training" if metric == FID else "", "")
        row[0].set_yscale("log")
        for axis in row:
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
            axis.tick_params(which="minor", labelsize=8)
    figure.suptitle("How it gets there (mean over seeds; dotted: where the baseline ends)", fontsize=11)
    figure.legend(loc="outside right center", frameon=False, fontsize=8.5)
    return figure


def _mean_curve(runs: list[StudyRun], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, seconds and values that all runs were measured at, but for the untrained network; means over runs."""
    steps = sorted(set.intersection(*({*run.curves[metric][0].tolist()} for run in runs)) - {0})
    seconds, values = (
        np.mean([[run.at(name, step) for step in steps] for run in runs], 0) for name in (SECONDS, metric)
    )
    return np.array(steps), seconds, values


def _color(study: Study, name: str) -> str:
    others = [method.name for method in study.methods if method.name != study.baseline]
    return IDEAL if name == study.baseline else _COLORS[others.index(name) % len(_COLORS)]


def _dress(axis: Axes, x: str, y: str) -> None:
    axis.set(xlabel=x, ylabel=y)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
