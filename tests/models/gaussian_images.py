"""Gaussian images, and their exact denoiser for whatever linear measurement of them is known."""

import numpy as np
import torch
from scipy.fft import idctn
from torch import Tensor

import ldmprobe
from ldmprobe.data.builtin import gaussian_spectrum
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from tests.helpers import GaussianDenoiser, sd_scheduler

SIZE = 8
EYE = torch.eye(SIZE**2, dtype=torch.float64)


def images(**options) -> ldmprobe.ImageData:
    kwargs = {"num_images": 400, "channels": 1, "size": SIZE, "exponent": 2.0, "floor": 0.01}
    return ldmprobe.ImageData("builtin:gaussian", kwargs, batch_size=32, **options)


def covariance() -> Tensor:
    basis = idctn(np.eye(SIZE**2).reshape(-1, SIZE, SIZE), axes=(1, 2), norm="ortho").reshape(SIZE**2, -1)
    return torch.from_numpy(basis.T * gaussian_spectrum(SIZE, 2.0, 0.01).ravel() @ basis)


class Exact(GaussianDenoiser):
    """The best denoiser of images whose measurement is read off the picture; it answers with ε.

    Args:
        measurement: A (M, D).
        reading: (M, C'·D), y = reading · picture.
    """

    def __init__(self, measurement: Tensor, reading: Tensor) -> None:
        super().__init__(torch.zeros(()), torch.ones(()), as_schedule(sd_scheduler()))
        self.reading, sigma = reading, covariance()
        self.gain = sigma @ measurement.T @ torch.linalg.pinv(measurement @ sigma @ measurement.T)
        self.rest = sigma - self.gain @ measurement @ sigma

    def forward(self, z_t, t, condition):
        alpha, sigma = (float(level[0]) for level in self._between(t, z_t))
        z, picture = z_t[:, 0].flatten(1).double(), z_t[:, 1:].flatten(1).double()
        mean = picture @ self.reading.T @ self.gain.T
        x0 = mean + (z - alpha * mean) @ (alpha * self.rest @ torch.linalg.inv(alpha**2 * self.rest + sigma**2 * EYE)).T
        return ((z - alpha * x0) / sigma).view(len(z), 1, SIZE, SIZE).to(z_t)
