"""Where an axis has its marks, and what stands beside them."""

from __future__ import annotations

from math import ceil, floor, log10

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_POWERS = 6  # on a logarithmic axis

Tick = tuple[float, str]


def linear_ticks(low: float, high: float, about: int = 5) -> list[Tick]:
    """Return marks at multiples of 1, 2 or 5 times a power of ten, ``about`` so many, within ``low`` … ``high``."""
    raw = (high - low) / about
    if not raw > 0:
        return [(low, f"{low:,.4g}")]
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    digits = max(0, -floor(log10(step) + 1e-9))
    marks = [k * step for k in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
    return [(mark, _minus(f"{mark + 0.0:,.{digits}f}" if digits < 6 else f"{mark:.3g}")) for mark in marks]


def log_ticks(low: float, high: float) -> list[Tick]:
    """Return marks of a logarithmic axis within the positive ``low`` … ``high``: powers of ten, six at most; within
    less than 1.5 decades also their multiples by 2, 3, 5 and 7.
    """
    first, last = floor(log10(low)), ceil(log10(high))
    if log10(high / low) < 1.5:
        every = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 3, 5, 7)]
        return [(mark, f"{mark:,g}") for mark in every if low <= mark <= high]
    stride = max(1, ceil((last - first + 1) / _MOST_POWERS))
    powers = [power for power in range(first, last + 1, stride) if low <= 10.0**power * (1 + 1e-9) <= high * (1 + 2e-9)]
    return [(10.0**power, _power(power)) for power in powers]


def binary_ticks(low: float, high: float) -> list[Tick]:
    """Return the powers of two within the positive ``low`` … ``high``."""
    return [(2.0**k, f"{2**k:,}") for k in range(40) if low <= 2**k <= high]


def _power(power: int) -> str:
    return f"{10.0**power:g}" if -3 < power < 4 else f"10{str(power).translate(_SUPERSCRIPT)}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
