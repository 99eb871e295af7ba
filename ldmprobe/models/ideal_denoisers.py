r"""Ideals as denoisers: what is optimal for data of a known distribution p(x_0), asked as any network is.

.. math:: \hat x_0(z) = \mathbb{E}[x_0 \mid z] = \frac{\int x_0\, p(x_0)\, N(z;\, \alpha x_0, \sigma^2)\, dx_0}
          {\int p(x_0)\, N(z;\, \alpha x_0, \sigma^2)\, dx_0}

`Memorizer` takes the training set itself for p: it is what a network tends to that learns its training set by heart,
and its error on the training set is the least that any network can have there (arXiv:2506.13763). `MixtureDenoiser`
takes a mixture of Gaussians that was fitted to it. On data that neither has seen both are denoisers like any other,
which a network ought to be no worse than.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ldmprobe.analysis.basis import Rotation
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.models.wrapper import Condition

_COMPONENTS = (4, 16, 64)  # that are tried
_LEAST_PER_COMPONENT = 16  # latents
_FLOOR = 1e-6  # of the mean variance


class IdealDenoiser(nn.Module, ABC):
    """A denoiser that is optimal for some distribution of latents, whatever the condition.

    It follows the Denoiser protocol, so that a DiffusionModel of it can be probed and sampled.

    Args:
        schedule: says what level it is at from what it is told, and what it is to answer.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    @abstractmethod
    def posterior_mean(self, z_t: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return E[x_0 | z_t] (N, C, H, W), float64, at z_t = α x_0 + σ ε."""

    def forward(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the answer at z_t (N, C, H, W), told t (N,), in the dtype of ``z_t``."""
        answer = torch.empty_like(z_t)
        for told in t.unique():
            alpha, sigma = (float(level) for level in self.schedule.level_told(told[None]))
            here = t == told
            z = z_t[here].double()
            x0 = self.posterior_mean(z, alpha, sigma)
            answer[here] = self.schedule.prediction.target(x0, (z - alpha * x0) / sigma, alpha, sigma).to(z_t.dtype)
        return answer


class Memorizer(IdealDenoiser):
    r"""The optimal denoiser of a finite set of latents: their mean, weighed by how likely each is behind z_t.

    .. math:: \hat x_0 = \sum_i w_i x_i, \qquad w = \text{softmax}_i \big( -|z_t - \alpha x_i|^2 / 2 \sigma^2 \big)

    Args:
        latents: x_i, (M, C, H, W).
        schedule: as IdealDenoiser's.
    """

    def __init__(self, latents: Tensor, schedule: NoiseSchedule) -> None:
        super().__init__(schedule)
        known = latents.detach().double().flatten(1)
        self.known, self.squares = (nn.Parameter(of, requires_grad=False) for of in (known, known.square().sum(1)))

    def posterior_mean(self, z_t: Tensor, alpha: float, sigma: float) -> Tensor:
        products = z_t.flatten(1).double() @ self.known.T
        weights = ((alpha * products - alpha**2 / 2 * self.squares) / sigma**2).softmax(1)
        return (weights @ self.known).view_as(z_t)


class MixtureDenoiser(IdealDenoiser):
    r"""The optimal denoiser of a mixture of Gaussians, each with a mean and variances of its own along directions that
    all have in common.

    .. math:: \hat x_{0,i} = \sum_k w_k \Big( m_{ki} + \frac{\alpha v_{ki}}{\alpha^2 v_{ki} + \sigma^2}
              (z_i - \alpha m_{ki}) \Big), \qquad w_k \propto \pi_k \prod_i N(z_i;\, \alpha m_{ki},\,
              \alpha^2 v_{ki} + \sigma^2)

    Args:
        weights: π, (K,), with sum 1.
        means, variances: m and v, (K, D), along the directions.
        rotation: the directions.
        schedule: as IdealDenoiser's.
    """

    def __init__(
        self, weights: Tensor, means: Tensor, variances: Tensor, rotation: Rotation, schedule: NoiseSchedule
    ) -> None:
        super().__init__(schedule)
        self.weights, self.means, self.variances = (
            nn.Parameter(value.detach().clone(), requires_grad=False) for value in (weights, means, variances)
        )
        self.rotation = rotation

    @classmethod
    def fit(cls, latents: Tensor, rotation: Rotation, schedule: NoiseSchedule) -> MixtureDenoiser | None:
        """Fit mixtures of 4, 16 and 64 Gaussians to latents (M, C, H, W) by expectation maximization (scikit-learn).
        Return the one under which a quarter of them, left out of the fit, is likeliest; None if that is a single
        Gaussian, or if there are too few latents to tell.

        Args:
            rotation: directions along which latents are nearly uncorrelated.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        along = rotation(latents.detach().cpu().double()).numpy()
        order = torch.randperm(len(along), generator=torch.Generator().manual_seed(0)).numpy()
        fitted, judged = along[order[len(order) // 4 :]], along[order[: len(order) // 4]]
        floor = _FLOOR * float(along.var(0).mean())
        numbers = [1, *(number for number in _COMPONENTS if number * _LEAST_PER_COMPONENT <= len(fitted))]
        if len(numbers) == 1:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the best of 30 rounds will do
            mixtures = [
                GaussianMixture(
                    number, covariance_type="diag", reg_covar=floor, max_iter=30, random_state=0
                ).fit(fitted)
                for number in numbers
            ]  # fmt: skip
        best = max(mixtures, key=lambda mixture: mixture.score(judged))
        if best.n_components == 1:
            return None
        weights, means, variances = map(torch.from_numpy, (best.weights_, best.means_, best.covariances_))
        return cls(weights, means, variances, rotation, schedule)

    def posterior_mean(self, z_t: Tensor, alpha: float, sigma: float) -> Tensor:
        means, variances = self.means.double(), self.variances.double()
        z, total = self.rotation(z_t.double()), alpha**2 * variances + sigma**2
        distance = z.square() @ (1 / total).T - 2 * alpha * z @ (means / total).T + (alpha**2 * means**2 / total).sum(1)
        likely = self.weights.double().log() - (distance + total.log().sum(1)) / 2
        share, gain = likely.softmax(1), alpha * variances / total
        along = share @ (means - alpha * gain * means) + (share @ gain) * z
        return self.rotation.inverse(along)
