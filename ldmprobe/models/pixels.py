"""Pixels of batches as floats in [−1, 1]: the one place that converts images of whole numbers and refuses values that
are no pixels.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ldmprobe.diffusion.full_precision import at_least_float32
from ldmprobe.errors import ConfigurationError

_RANGES = {torch.bool: 1, torch.uint8: 255, torch.uint16: 65535}
# of floats that are all positive: more are no pixels in [−1, 1], and no latents that noise of variance 1 belongs to
_HIGHEST = 16.0
_ROUNDING = 1e-3  # by how much pixels in [−1, 1] may be beyond


def as_floats(images: Tensor) -> Tensor:
    """Convert images (N, C, H, W) to float32: of whole numbers, what is white in their type becomes 1, and 0 becomes
    −1; floats stay.

    Raises:
        ConfigurationError: whole numbers of a type that does not say which is white.
    """
    if images.is_floating_point():
        return images.float()
    kind = str(images.dtype).removeprefix("torch.")
    if images.dtype not in _RANGES:
        raise ConfigurationError(
            f"Images of {kind} do not say which number is white; give uint8 from 0 to 255, or floats in [−1, 1]."
        )
    white = _RANGES[images.dtype]
    warnings.warn(
        f"Images of {kind} are taken to go from 0 to {white}, and are converted to floats in [−1, 1] (x / "
        f"{white / 2:g} − 1), for training and probes alike.",
        stacklevel=2,
    )
    return images.float() / (white / 2) - 1


def as_bytes(images: Tensor) -> Tensor:
    """Convert floats in [−1, 1], of any shape, to uint8; values beyond are clipped, and NaN becomes mid-gray."""
    images = images.to(at_least_float32(images.dtype))
    return ((images.nan_to_num().clamp(-1, 1) + 1) * 127.5).round().byte()


def from_bytes(images: Tensor) -> Tensor:
    """Convert what ``as_bytes`` gave to floats in [−1, 1]."""
    return images.float() / 127.5 - 1


def checked_floats(images: Tensor) -> Tensor:
    """Convert images likewise, and look at their values, which costs a pass over them.

    Raises:
        ConfigurationError: also values that are not finite, or are floats from 0 to 255.
    """
    floats = as_floats(images)
    finite = floats.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        wrong = (~finite).nonzero().flatten().tolist()
        raise ConfigurationError(
            f"{len(wrong)} of {len(floats)} images of a batch have NaN or infinite values, the first at place "
            f"{wrong[0]} of the batch; remove or repair them."
        )
    low, high = float(floats.min()), float(floats.max())
    if low >= 0 and high > _HIGHEST:
        raise ConfigurationError(
            f"The images of a batch are floats from {low:g} to {high:g}; expected [−1, 1]: for pixels from 0 to 255, x "
            "/ 127.5 − 1."
        )
    return floats


def check_pixels(images: Tensor) -> None:
    """Check that images to be trained on, (N, C, H, W), are pixels in [−1, 1]; warn where none is below 0, of which
    black would be gray. NaN and infinite values are left to `NonFinite`, which names their rows.

    Raises:
        ConfigurationError: they are not.
    """
    low, high = (float(value) for value in as_floats(images).nan_to_num(-1, -1, -1).aminmax())
    if max(-low, high) > 1 + _ROUNDING:
        raise ConfigurationError(
            f"The images of the first training batch have values from {low:g} to {high:g}; expected [−1, 1]: for "
            "pixels from 0 to 255, x / 127.5 − 1; from 0 to 1, x * 2 − 1. (ImageData takes floats that are no pixels "
            "as they are.)"
        )
    if low >= 0:
        warnings.warn(
            f"The images of the first training batch have values from {low:g} to {high:g}, and 0 is gray: expected "
            "[−1, 1]. If black is 0, as torchvision's ToTensor has it, write x * 2 − 1.",
            stacklevel=2,
        )


def decibels(mse: Tensor) -> Tensor:
    """Return the PSNR of mean squared errors of pixels in [−1, 1]: 10 log10(2²/MSE), infinite where there is none."""
    return 10 * torch.log10(4 / mse)
