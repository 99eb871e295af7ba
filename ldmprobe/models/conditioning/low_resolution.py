"""LowResolution: a small image beside z_t: super-resolution."""

from __future__ import annotations

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning.observed import Observed
from ldmprobe.models.conditioning.protocols import ConditioningData
from ldmprobe.models.conditioning.spatial import SpatialConditioning
from ldmprobe.models.corruption import Downsampling, downsampled
from ldmprobe.models.denoiser import Condition, config_of
from ldmprobe.models.pixels import as_bytes, as_floats, from_bytes
from ldmprobe.types import Batch, Component, PlainValues

SMALL = "small"
"""The name in batches of small images, in [−1, 1], that take the place of those made of `image`."""
_BETA, _LEVELS = (1e-4, 0.02), 1000  # of DDPM's table (Ho et al., 2020, arXiv:2006.11239)
_NOISE = 8  # its stream of random numbers
_TOLD = "class_labels"


class LowResolution(SpatialConditioning):
    r"""Images of 1/factor of the size, brought to the size of the latents: as they are, if that is theirs, as in latent
    diffusion at f = factor; else by bicubic interpolation (Saharia et al., 2021, arXiv:2104.07636), without aliasing
    where the latents are smaller.

    Noise augmentation (Ho et al., 2021, arXiv:2106.15282): in training the small image y becomes
    :math:`\sqrt{\bar\alpha_s}\,y + \sqrt{1-\bar\alpha_s}\,\epsilon` at a level s that is drawn for each sample and
    told to the network as its `class_labels`, so that it learns how far to trust y. The table is DDPM's, after a
    level 0 of no noise.

    Args:
        factor: how many times smaller the images are.
        downsampling: "box" (mean over cells), "bicubic" without aliasing, or "blur": blur and noise at random.
        noise_levels: levels 0 … noise_levels are drawn in training (350 in Stable Diffusion's upscaler); the network
            has `num_class_embeds` one more. 0 is none, and tells the network nothing.
        sampling_level: the level of samples and held-out images.
        eight_bits: whether small images are rounded to 8 bits, as those in files and those of a cascade are.
        seed: of what is drawn for each row.
        scheduler: settings of the DDPMScheduler whose table it is, in the place of DDPM's; level 0 is its first, too.

    Raises:
        ConfigurationError: settings out of range, or, before training, images that cannot be divided by the factor, or
            a network that does not embed the levels.
    """

    def __init__(
        self,
        factor: int = 4,
        downsampling: Downsampling = "box",
        noise_levels: int = 0,
        sampling_level: int = 0,
        eight_bits: bool = True,
        seed: int = 0,
        dropout: float = 0.0,
        num_rows: int = 64,
        present: bool = False,
        scheduler: PlainValues | None = None,
    ) -> None:
        super().__init__(dropout, num_rows, present)
        if factor < 2 or downsampling not in get_args(Downsampling):
            raise ConfigurationError(
                f"LowResolution got factor {factor}, downsampling {downsampling!r}; expected a factor of at least 2 "
                f"and one of {', '.join(get_args(Downsampling))}."
            )
        self.scheduler = scheduler
        self.alpha_bar: Tensor = self._low_res_scheduler.alphas_cumprod
        if not 0 <= sampling_level <= noise_levels < len(self.alpha_bar):
            raise ConfigurationError(
                f"LowResolution got noise_levels {noise_levels}, sampling_level {sampling_level}; expected 0 <= "
                f"sampling_level <= noise_levels < {len(self.alpha_bar)}."
            )
        self.factor, self.downsampling, self.eight_bits, self.seed = factor, downsampling, eight_bits, seed
        self.noise_levels, self.sampling_level = noise_levels, sampling_level

    @property
    def _low_res_scheduler(self) -> Component:
        from diffusers import DDPMScheduler

        betas = [0.0, *torch.linspace(*_BETA, _LEVELS)[:-1].tolist()]
        return DDPMScheduler(**({"trained_betas": betas} if self.scheduler is None else self.scheduler))

    @property
    def settings(self) -> PlainValues:
        names = ("factor", "downsampling", "noise_levels", "sampling_level", "eight_bits", "seed", "scheduler")
        return {name: vars(self)[name] for name in names}

    @property
    def observation_key(self) -> PlainValues:
        later = ("noise_levels", "sampling_level", "scheduler")
        return {name: value for name, value in super().observation_key.items() if name not in later}

    def observe(self, batch: Batch) -> Observed:
        if SMALL in batch:
            return {"low": as_bytes(batch[SMALL]) if self.eight_bits else batch[SMALL]}
        images = as_floats(batch["image"])
        if images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise ConfigurationError(
                f"LowResolution has factor {self.factor}, and images of {images.shape[2]}×{images.shape[3]} cannot be "
                "divided by it; set the data's `image_size` to a multiple."
            )
        rows = self.row_numbers(batch) if self.downsampling == "blur" else ()
        low = downsampled(images, self.factor, self.downsampling, rows, self.seed)
        return {"low": as_bytes(low) if self.eight_bits else low}

    def enlarged(self, batch: Batch) -> Tensor:
        return self._floats(self.observed(batch))

    def picture(self, observed: Observed) -> Tensor:
        low = self._floats(observed)
        if tuple(low.shape[2:]) == self.latent_size:
            return low
        shrinks = low.shape[2] > self.latent_size[0]  # else the filter of `antialias` is another, PIL's
        return F.interpolate(low, size=self.latent_size, mode="bicubic", antialias=shrinks)

    def condition(self, observed: Observed, ids: Tensor) -> Condition:
        levels = torch.full((len(ids),), self.sampling_level, device=ids.device)
        shape = tuple(observed["low"].shape[1:])
        noise = sample_noise(ids.tolist(), shape, self.seed, stream=_NOISE) if self.sampling_level else torch.zeros(1)
        return self._noised(observed, levels, noise)

    def for_training(self, batch: Batch) -> Condition:
        observed = self.observed(batch)
        low = observed["low"]
        levels = torch.randint(self.noise_levels + 1, (len(low),), device=low.device)
        noise = torch.randn(low.shape, device=low.device) if self.noise_levels else torch.zeros(1)
        return self.dropped(self._noised(observed, levels, noise))

    def _noised(self, observed: Observed, levels: Tensor, noise: Tensor) -> Condition:
        """Return the condition of small images, each noised to its level and told which it is."""
        low = self._floats(observed)
        if not self.noise_levels:
            return self.joined(self.picture({"low": low}))
        kept = self.alpha_bar[levels.cpu()].to(low).view(-1, 1, 1, 1)
        noised = kept.sqrt() * low + (1 - kept).sqrt() * noise.to(low)
        return {**self.joined(self.picture({"low": noised})), _TOLD: levels.to(low.device)}

    def null(self, num_samples: int, device: torch.device) -> Condition:
        told = {_TOLD: torch.zeros(num_samples, dtype=torch.long, device=device)} if self.noise_levels else {}
        return {**super().null(num_samples, device), **told}

    @property
    def small_size(self) -> tuple[int, ...]:
        return tuple(size // self.factor for size in self.image_size)

    def prepare(self, network: nn.Module, data: ConditioningData, codec: LatentCodec) -> None:
        super().prepare(network, data, codec)
        config = config_of(network)
        embeds = config.get("num_class_embeds", self.noise_levels + 1)
        if self.noise_levels and config.get("class_embed_type") is None and (embeds or 0) <= self.noise_levels:
            raise ConfigurationError(
                f"{type(network).__name__} has num_class_embeds {embeds}, and LowResolution noise_levels "
                f"{self.noise_levels}; expected {self.noise_levels + 1}, one for each level, 0 included."
            )

    # --- StableDiffusionUpscalePipeline ----------------------------------------------------------------------------

    beside_text = "StableDiffusionUpscalePipeline"

    @property
    def call_arguments(self) -> str:
        return f"image=small_image, noise_level={self.sampling_level}"

    @property
    def pipeline_parts(self) -> PlainValues:
        return {"low_res_scheduler": self._low_res_scheduler, "max_noise_level": self.noise_levels}

    def check_exportable(self, network: nn.Module, latent_shape: tuple[int, ...]) -> None:
        if self.present or self.small_size != tuple(latent_shape[1:]):
            raise ConfigurationError(
                f"LowResolution has factor {self.factor}, present {self.present}, images of {self.image_size} and "
                f"latents of {tuple(latent_shape[1:])}; a {self.beside_text} joins small images as large as the "
                "latents, and nothing else."
            )

    def pictured(self, observed: Observed) -> Tensor:
        return self.resized(self._floats(observed))

    def _floats(self, observed: Observed) -> Tensor:
        low = observed["low"]
        return low if low.is_floating_point() else from_bytes(low)
