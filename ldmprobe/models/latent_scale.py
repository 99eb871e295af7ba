"""The scale of latents: the settings of an autoencoder that say it, read and written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldmprobe.errors import ConfigurationError
from ldmprobe.types import PlainValues

SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""The settings of an autoencoder that say how its latents are scaled."""


def says_scale(config: PlainValues) -> bool:
    """Return whether an autoencoder's configuration says how its latents are scaled."""
    return any(config.get(name) is not None for name in ("scaling_factor", "latents_mean"))


class Moments(NamedTuple):
    """The first two moments of latents, over all entries, (), or over those of each channel, (c,), in float64.

    Attributes:
        num_latents: the number of latents, above 0.
    """

    num_latents: int
    mean: Tensor
    variance: Tensor


def moments_of(latents: Iterable[Tensor], per_channel: bool) -> Moments | None:
    """Return the moments of batches of latents (N, c, h, w); None if there are no batches."""
    count, number, total, squares = 0, 0, torch.zeros(()).double(), torch.zeros(()).double()
    for batch in latents:
        z = batch.double()
        entries = z.transpose(0, 1).flatten(1) if per_channel else z.flatten()
        count, number = count + len(z), number + entries.shape[-1]
        total, squares = total + entries.sum(-1).cpu(), squares + entries.square().sum(-1).cpu()
    if not count:
        return None
    mean = total / number
    return Moments(count, mean, squares / number - mean**2)


def in_digits(values: Tensor, digits: str) -> str:
    """Return a scale or shift as text: one number, or one by channel with a comma between."""
    return ", ".join(format(value, digits) for value in values.flatten().tolist())


def scale_and_shift(config: PlainValues) -> tuple[Tensor, Tensor]:
    """Return scale and shift by these settings of an autoencoder, in float32.

    As diffusers' pipelines do: one factor and shift, or (Stable Diffusion XL) mean and standard deviation by channel
    and one factor.
    """
    factor, shift = _number(config, "scaling_factor", 1.0), _number(config, "shift_factor", 0.0)
    if factor == 0:
        raise ConfigurationError("The autoencoder's scaling_factor is 0; expected another number.")
    means, deviations = _numbers(config, "latents_mean"), _numbers(config, "latents_std")
    if (means is None) != (deviations is None):
        there, absent = ("latents_mean", "latents_std") if deviations is None else ("latents_std", "latents_mean")
        raise ConfigurationError(f"The autoencoder's config has {there} and no {absent}; give both, or neither (null).")
    if means is None or deviations is None:
        return torch.tensor(factor, dtype=torch.float32), torch.tensor(shift, dtype=torch.float32)
    if shift != 0:
        raise ConfigurationError(
            f"The autoencoder's config has both a shift_factor, {shift}, and latents_mean; expected one of them, the "
            "other null."
        )
    if len(means) != len(deviations) or min(deviations) <= 0:
        raise ConfigurationError(
            f"The autoencoder's latents_mean is {means}, its latents_std {deviations}; expected a number for each "
            "channel, in latents_std above 0."
        )
    mean, deviation = (torch.tensor(each, dtype=torch.float32).view(-1, 1, 1) for each in (means, deviations))
    return factor / deviation, mean


def scaling_of(means: Sequence[float], deviations: Sequence[float], per_channel: bool = False) -> PlainValues:
    """Return the settings (``SCALING``) with which latents of these means and standard deviations by channel have mean
    0 and variance 1, over all entries or over those of each channel.

    Raises:
        ConfigurationError: the latents do not vary, or a channel of them does not.
    """
    mean = sum(means) / len(means)
    variance = sum(d**2 + m**2 for m, d in zip(means, deviations, strict=True)) / len(means) - mean**2
    if per_channel and min(deviations) > 0:
        return {**dict.fromkeys(SCALING), "scaling_factor": 1.0, "latents_mean": means, "latents_std": deviations}
    if per_channel:
        raise ConfigurationError(
            f"Channel {list(deviations).index(min(deviations))} of the latents does not vary, so that it has no scale "
            "of its own; leave out --per-channel."
        )
    if not (math.isfinite(variance) and variance > 0):
        raise ConfigurationError(
            "The latents of the training images do not vary (or are not finite), so that they have no scale; check the "
            "autoencoder and the images."
        )
    return {**dict.fromkeys(SCALING), "scaling_factor": variance**-0.5, "shift_factor": mean}


def _number(config: PlainValues, name: str, default: float) -> float:
    value = default if config.get(name) is None else config[name]
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    raise ConfigurationError(f"The autoencoder's {name} is {value!r}; expected a number.")


def _numbers(config: PlainValues, name: str) -> list[float] | None:
    values = config.get(name)
    if values is None:
        return None
    if not isinstance(values, (list, tuple)) or not all(
        isinstance(v, (int, float)) and math.isfinite(v) for v in values
    ):
        raise ConfigurationError(
            f"The autoencoder's {name} is {values!r}; expected a list of numbers, one for each channel."
        )
    return [float(value) for value in values]
