"""Verdict: what the records of one run say, and what to do next; ``probing/judge.py`` comes to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum

import numpy as np

from ldmprobe.analysis.faults import in_nats
from ldmprobe.probing.forecast import Forecast
from ldmprobe.types import PlainValues


class State(Enum):
    """The state of a band of noise levels, or of a run, from harmless to grave; its code is what callbacks monitor."""

    CANNOT_SAY = "cannot say"
    CALIBRATED = "calibrated"
    LEVELLED_OFF = "levelled off"
    LEARNING = "learning"
    AT_FAULT = "at fault"
    OVERFITTING = "overfitting"
    MEMORIZING = "memorizing"
    BROKEN = "broken"

    @property
    def code(self) -> int:
        """Its place in that order: −1 cannot say, 0 calibrated, 1 levelled off, 2 learning, 3 at fault, 4 overfitting,
        5 memorizing, 6 broken.
        """
        return list(State).index(self) - 1

    @property
    def exit_code(self) -> int:
        """0 fine, 1 look, 2 cannot say."""
        return 2 if self is State.CANNOT_SAY else int(self.code >= State.AT_FAULT.code)

    @property
    def symbol(self) -> str:
        return {0: "✓", 1: "▲", 2: "?"}[self.exit_code]


@dataclass(frozen=True)
class BandVerdict:
    """The verdict on a band of log-SNR.

    Attributes:
        name, low, high: the band.
        state: what it is in.
        nats: its part of the likelihood bound.
        recoverable: nats that it could still lose, at least.
        change: nats since the probe it is compared with; NaN where there is none.
        change_width: half-width of its 95 % interval.
        evidence: a sentence without its stop.
        forecast: what twice the steps will change; None where there are too few probes to say.
    """

    name: str
    low: float
    high: float
    state: State
    nats: float
    recoverable: float
    change: float
    change_width: float
    evidence: str
    forecast: Forecast | None = None

    @property
    def symbol(self) -> str:
        """✓ fine, • unfinished, ▲ look, ? cannot say."""
        return "•" if self.state is State.LEARNING and self.recoverable > 0 else self.state.symbol


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run.

    Attributes:
        state: the gravest of its bands' that counts; memorizing at least where samples are copies of training images.
        step: of the last probe; ``since`` is the probe it is compared with, or None.
        bound: the held-out likelihood bound between the first level and the last, in nats.
        change: nats since then; NaN where there is nothing to compare with.
        recoverable: nats of it that could still go, at least.
        bands: noisy to clean.
        sentence: what is the matter, with what it costs.
        action: what to do next.
        confidence: what the verdict rests on, and how sure that makes it.
        forecast: what twice the steps will bring; None where there are too few probes to say.
    """

    state: State
    step: int
    since: int | None
    bound: float
    change: float
    recoverable: float
    bands: tuple[BandVerdict, ...]
    sentence: str
    action: str
    confidence: str
    forecast: Forecast | None = None

    @property
    def worst(self) -> BandVerdict | None:
        """The band to look at first: of the gravest state, that with most to recover."""
        known = [band for band in self.bands if band.state is self.state] or self.bands
        return max(known, key=lambda band: band.recoverable, default=None)

    @property
    def line(self) -> str:
        """The verdict in one line, for a terminal."""
        return f"{self.state.symbol} {self.state.value}: {self.sentence} {self.action}"

    @property
    def news(self) -> str:
        """The step, the bound and its change, the state and the worst band, in a line for a terminal."""
        said = f"step {self.step:,}: "
        if np.isfinite(self.bound):
            change = f" ({signed(self.change)})" if np.isfinite(self.change) else ""
            said += f"bound {self.bound:,.1f} nats{change}, "
        said += f"{self.state.symbol} {self.state.value}"
        if (worst := self.worst) is not None and worst.recoverable > 0:
            said += f", {in_nats(worst.recoverable)} nats could still go at log-SNR {worst.name}"
        return said

    @property
    def in_full(self) -> str:
        """The verdict, a line for each band, and what it rests on."""
        wide = max((len(band.name) for band in self.bands), default=0)
        lines = [f"  {b.symbol} log-SNR {b.name:{wide}}  {b.state.value:12}  {b.evidence}" for b in self.bands]
        return "\n".join([self.line, *lines, f"  {self.confidence}"])

    def as_dict(self) -> PlainValues:
        """Return it as plain values, for JSON."""
        plain = {**asdict(self), "state": self.state.value, "code": self.state.code, "worst_band": None}
        plain["bands"] = [{**asdict(band), "state": band.state.value} for band in self.bands]
        if self.worst:
            plain["worst_band"] = self.worst.name
        return {name: _finite(value) for name, value in plain.items()}


def signed(nats: float) -> str:
    """Return a change in nats with its sign, to a hundredth, or without decimals where it is large."""
    return f"{nats:+,.{2 if abs(nats) < 1 else 1 if abs(nats) < 10 else 0}f}".replace("-", "−")


def _finite(value: object) -> object:
    """JSON knows no NaN."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value
