"""Start: where a trajectory begins, in noise or at an image that is noised to a level."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ldmprobe.diffusion.grids import entered_at
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.types import PlainValues

_SAME = 1e-6  # log-SNRs that are this close are one level


class Start(ABC):
    """A rule for the latents that the first step is given."""

    @abstractmethod
    def cut(self, grid: SamplingGrid) -> SamplingGrid:
        """Return the part of ``grid`` that is left to be stepped through.

        Raises:
            ConfigurationError: the level to start from is not on the schedule.
        """

    @abstractmethod
    def latents(self, model: DiffusionModel, grid: SamplingGrid, sample_ids: list[int], noise: Tensor) -> Tensor:
        """Return the latents (N, C, H, W) of these samples at the first level of ``grid``, made with their standard
        normal ``noise``.

        Raises:
            ConfigurationError: the model does not take the images.
        """

    @property
    @abstractmethod
    def provenance(self) -> PlainValues:
        """Return what a record says of it, as plain values."""

    @property
    @abstractmethod
    def shifts(self) -> bool:
        """Return whether samples are not those of the model's own distribution, so that there is no ideal."""


class FromNoise(Start):
    """The noise that the schedule ends in."""

    def cut(self, grid: SamplingGrid) -> SamplingGrid:
        return grid

    def latents(self, model: DiffusionModel, grid: SamplingGrid, sample_ids: list[int], noise: Tensor) -> Tensor:
        return grid.prior_std * noise

    @property
    def provenance(self) -> PlainValues:
        return {}

    @property
    def shifts(self) -> bool:
        return False


class FromImages(Start):
    r"""SDEdit (Meng et al., 2021, arXiv:2108.01073, algorithm 1): images are noised to a level,
    :math:`z = \alpha x + \sigma\epsilon`, and sampled from there, which keeps what is coarser than the noise.

    The steps are those of the whole grid that are cleaner than the level, and the first of them begins at exactly that
    level, so that a strength means the same whatever the number of steps, the grid, the sampler and the schedule. At
    the schedule's noisiest level, and beyond, the image is ignored; at its cleanest one it comes back.

    Args:
        images: (K, C, H, W) in [−1, 1]; sample i starts from number i mod K.
        log_snr: the level: the strength of the change, which grows as it falls.

    Raises:
        ConfigurationError: no images, or a log-SNR that is no number, or, before sampling, above the schedule's.
    """

    def __init__(self, images: Tensor, log_snr: float) -> None:
        if images.ndim != 4 or len(images) == 0:
            raise ConfigurationError(f"FromImages got images of shape {tuple(images.shape)}; expected (K, C, H, W).")
        if math.isnan(log_snr):
            raise ConfigurationError("FromImages got log_snr nan; expected the level to start from.")
        self.images, self.log_snr = images, float(log_snr)

    def cut(self, grid: SamplingGrid) -> SamplingGrid:
        return grid if self._is_noise(grid) else entered_at(grid, self.log_snr)

    def latents(self, model: DiffusionModel, grid: SamplingGrid, sample_ids: list[int], noise: Tensor) -> Tensor:
        if self._is_noise(grid):
            return grid.prior_std * noise
        expected, given = model.codec.image_shape(model.latent_shape), tuple(self.images.shape[1:])
        if given != expected:
            raise ConfigurationError(f"FromImages got images of shape {given}; the model's are {expected}.")
        images = self.images[torch.tensor(sample_ids) % len(self.images)]
        z0 = model.codec.encode(images.to(noise.device), sample_posterior=False)
        return float(grid.alpha_t[0]) * z0 + float(grid.sigma_t[0]) * noise

    def _is_noise(self, grid: SamplingGrid) -> bool:
        """Return whether the level is the schedule's noisiest, or noisier than where the grid starts."""
        return self.log_snr <= float(grid.schedule.log_snr[-1]) + _SAME or self.log_snr < float(grid.log_snr[0]) - _SAME

    @property
    def provenance(self) -> PlainValues:
        return {"start": f"images {fingerprint(self.images)[:8]} at log-SNR {self.log_snr:g}"}

    @property
    def shifts(self) -> bool:
        return True
