"""Metric: what a number in a record means. Each probe declares its metrics once, beside the code that measures them.

A record carries the metrics of its probe, and its file holds them, so that loggers, charts, the report and comparisons
are loops over them that know no metric by name. A record of an analysis from outside ldmprobe is shown even where that
analysis is not installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from ldmprobe.types import PlainValues

Good = Literal["lower", "higher", "ideal"]
Pool = Literal["mean", "sum"]
Shown = Literal["headline", "detail", "record"]


@dataclass(frozen=True)
class Metric:
    """A scalar of a record, or a curve, over noise levels if it does not say otherwise.

    Attributes:
        name: its name in the record. "variance_ratio/*" stands for a family: "variance_ratio/band0",
            "variance_ratio/band1", …
        title: a noun phrase, the heading of its chart.
        meaning: one or two sentences: what it says, and how to read it.
        unit: the label of its axis, such as "nats per dimension".
        good: whether lower or higher is better, or only the distance from the ideal counts.
        ideal: the mark it is held against: a number, or the name of the curve that holds it.
        beside: names of further curves to be drawn with it; they may be another probe's.
        log: whether its axis is logarithmic.
        along: what a curve is along where that is no noise level, such as "latent channel".
        places: the name of the curve that holds the places along it; default: 0, 1, 2, …
        matrix: whether the curves of a family, along each other, are drawn as the rows of a matrix.
        log_along: whether that axis is logarithmic, which leaves out place 0.
        pool: how the levels within a band of log-SNR make one number; None where they make none.
        spread: the name of the scalar that is its half-width or standard deviation.
        shown: a headline (everywhere), a detail (in the report, and in loggers that are sent all levels), or in the
            record alone.

    Raises:
        ValueError: an attribute of another type, or none of the choices.
    """

    name: str
    title: str
    meaning: str = ""
    unit: str = ""
    good: Good = "ideal"
    ideal: float | str | None = None
    beside: tuple[str, ...] = ()
    log: bool = False
    along: str = ""
    places: str = ""
    log_along: bool = False
    matrix: bool = False
    pool: Pool | None = None
    spread: str | None = None
    shown: Shown = "detail"

    def __post_init__(self) -> None:
        object.__setattr__(self, "beside", tuple(self.beside))  # a list, from a file
        texts = (self.name, self.title, self.meaning, self.unit, self.along, self.places, self.spread or "")
        if (
            not all(isinstance(text, str) for text in (*texts, *self.beside))
            or not isinstance(self.ideal, str | float | int | None)
            or not all(isinstance(flag, bool) for flag in (self.log, self.log_along, self.matrix))
            or self.good not in get_args(Good)
            or self.pool not in (None, *get_args(Pool))
            or self.shown not in get_args(Shown)
        ):
            raise ValueError(f"not a metric: {self!r:.300}")

    @property
    def has_heatmap(self) -> bool:
        """Return whether its levels can be laid over training: they have one mark, or are put together by band."""
        return not self.along and (self.pool is not None or isinstance(self.ideal, int | float))

    def ideal_of(self, name: str) -> float | str | None:
        """Return the ideal of a member of the family, such as "variance_ratio_ideal/band0" of
        "variance_ratio/band0".
        """
        if isinstance(self.ideal, str) and self.ideal.endswith("/*"):
            return self.ideal[:-1] + name.rpartition("/")[2]
        return self.ideal


def metric_from(entry: PlainValues) -> Metric:
    """Return the metric in a record's file; what this version does not know of it is left out.

    Raises:
        TypeError, ValueError: it is none.
    """
    return Metric(**{name: value for name, value in entry.items() if name in Metric.__match_args__})


def metric_named(name: str, metrics: Iterable[Metric]) -> Metric:
    """Return the metric called ``name``, or that of its family; one of no meaning where none was declared."""
    by_name = {metric.name: metric for metric in metrics}
    return by_name.get(name) or by_name.get(f"{name.rpartition('/')[0]}/*") or Metric(name, name)
