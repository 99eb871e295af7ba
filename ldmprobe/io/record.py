"""ProbeRecord: what a probe found. The product: on disk before any logger sees it; plots and reports read nothing
else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import ArrayLike

from ldmprobe.io.metric import Metric, metric_named
from ldmprobe.types import PlainValues

PROBE_NAME = re.compile(r"[a-z0-9_]{1,64}")  # part of a file's name


@dataclass(frozen=True)
class Curve:
    """A number per noise level, in sampling order (noisiest first), or per place along something else, as its metric
    says. All arrays have shape (S,).
    """

    timestep: np.ndarray
    log_snr: np.ndarray
    value: np.ndarray
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None

    @classmethod
    def around(cls, timestep: ArrayLike, log_snr: ArrayLike, value: ArrayLike, half_width: ArrayLike) -> Curve:
        """A number at each noise level, in the middle of its interval."""
        value, half_width = np.asarray(value), np.asarray(half_width)
        return cls(np.asarray(timestep), np.asarray(log_snr), value, value - half_width, value + half_width)

    @classmethod
    def along(cls, value: ArrayLike, half_width: ArrayLike | None = None) -> Curve:
        """A number for each place along what is no noise level, such as latent channels."""
        value = np.asarray(value, dtype=np.float64)
        nowhere = np.full(len(value), -1), np.full(len(value), np.nan)
        return cls(*nowhere, value) if half_width is None else cls.around(*nowhere, value, half_width)


@dataclass(frozen=True)
class Scatter:
    """Two coordinates per sample at one noise level: ``xy`` (N, 2)."""

    timestep: int
    log_snr: float
    xy: np.ndarray


@dataclass(frozen=True)
class PerSample:
    """A number per noise level and sample: ``value`` (S, N), levels as a curve's. What paired comparisons are made
    of.
    """

    timestep: np.ndarray
    log_snr: np.ndarray
    value: np.ndarray


@dataclass(frozen=True, repr=False)
class ProbeRecord:
    """The findings of one run of one probe.

    Attributes:
        probe: which probe.
        step: optimizer steps taken when it ran.
        scalars, curves, scatters, per_sample, images: by metric name. A scatter is one per noise level; an image is PNG
            bytes.
        metrics: what the scalars and curves mean.
        provenance: what it was measured with: sample numbers, steps, weights, versions; plain JSON values.
        fingerprints: hashes of grid, reference, basis, codec, sampler: records are comparable where these agree.
        created: UTC, ISO 8601.

    Raises:
        ValueError: a probe whose name could not be part of a file's (``[a-z0-9_]``), or a negative step.
    """

    probe: str
    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    scatters: dict[str, list[Scatter]] = field(default_factory=dict)
    per_sample: dict[str, PerSample] = field(default_factory=dict)
    images: dict[str, list[bytes]] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    provenance: PlainValues = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if not isinstance(self.probe, str) or not PROBE_NAME.fullmatch(self.probe):
            raise ValueError(f"the probe is called {self.probe!r}; expected lower-case letters, digits and underscores")
        if not isinstance(self.step, int) or isinstance(self.step, bool) or not 0 <= self.step < 2**63:
            raise ValueError(f"the step is {self.step!r}; expected a number from 0")

    def __repr__(self) -> str:
        names = ("scalars", "curves", "scatters", "per_sample", "images")
        held = {name.replace("_", " "): len(vars(self)[name]) for name in names}
        return (
            f"ProbeRecord({self.probe!r}, step {self.step:,}: "
            f"{', '.join(f'{count} {name}' for name, count in held.items() if count)})"
        )

    def metric(self, name: str) -> Metric:
        """Return what a scalar or curve means."""
        return metric_named(name, self.metrics)

    @property
    def numbers(self) -> ProbeRecord:
        """The scalars and curves alone: some kilobytes, whatever the samples."""
        return replace(self, scatters={}, per_sample={}, images={})
