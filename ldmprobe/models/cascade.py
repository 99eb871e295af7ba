"""A cascade: samples of a base model that another one, the upsampler, makes larger."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.conditioning import SMALL, OfRows
from ldmprobe.models.diffusion_model import DiffusionModel


def check_cascade(base: DiffusionModel, upsampler: DiffusionModel) -> None:
    """Raise ConfigurationError, before anything is sampled, if an upsampler does not go on where the base ends."""
    size, made = upsampler.conditioning.small_size, base.codec.image_shape(base.latent_shape)
    if size is None:
        raise ConfigurationError(
            f"The upsampler is told no small image ({upsampler.conditioning.label}); expected a model trained with "
            "LowResolution."
        )
    channels = upsampler.codec.image_shape(upsampler.latent_shape)[0]
    if (channels, *size) != tuple(made):
        raise ConfigurationError(
            f"The upsampler is told small images of shape {(channels, *size)}, and the base makes {tuple(made)}; train "
            "the one at the other's size."
        )
    known = base.conditioning.as_columns(torch.arange(1))
    for name in upsampler.conditioning.columns:
        if name not in known:
            raise ConfigurationError(
                f"The upsampler is told a {name}, too, and the base ({base.conditioning.label}) none that it could "
                "have."
            )


def cascaded(base: DiffusionModel, upsampler: DiffusionModel, images: Tensor) -> DiffusionModel:
    """Return the upsampler as the cascade has it (Nichol et al., 2021, arXiv:2112.10741, section 4; Ho et al., 2021,
    arXiv:2106.15282): sample i is told the base's image number i, rounded to 8 bits and noised as the upsampler's
    `LowResolution` says, and the class and caption of the base's sample i.

    Args:
        images: the base's samples, (N, C, h, w), about [−1, 1].

    Raises:
        ConfigurationError: the two do not go together.
    """
    check_cascade(base, upsampler)
    ids = torch.arange(len(images))
    batch = {SMALL: images, "index": ids, **base.conditioning.as_columns(ids)}
    with torch.no_grad():
        return replace(upsampler, conditioning=OfRows(upsampler.conditioning, [batch]))
