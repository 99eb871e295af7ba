r"""Continuous noise processes, discretized to T training levels: VP-SDE, sub-VP, variance exploding, EDM.

Each is three formulas: the log-SNR λ at a time u in [0, 1], and α and what the network is told at any λ. With
B(u) = β_0 u + ½ (β_1 − β_0) u²:

.. math::
    \text{VP} \quad & \alpha^2 = e^{-B}, \quad \sigma^2 = 1 - \alpha^2 \\
    \text{sub-VP} \quad & \alpha^2 = e^{-B}, \quad \sigma = 1 - \alpha^2 \\
    \text{VE} \quad & \alpha = 1, \quad \sigma = \sigma_{min} (\sigma_{max} / \sigma_{min})^u \\
    \text{EDM} \quad & \alpha = 1, \quad
        \sigma^{1/\rho} = \sigma_{min}^{1/\rho} + u\,(\sigma_{max}^{1/\rho} - \sigma_{min}^{1/\rho})

VP, sub-VP, VE: Song et al., 2021 (arXiv:2011.13456), eq. 29 to 33. EDM: Karras et al., 2022 (arXiv:2206.00364), eq. 5.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ldmprobe.diffusion.grids import through
from ldmprobe.diffusion.prediction import EpsilonPrediction, Prediction, SamplePrediction, prediction_named
from ldmprobe.diffusion.schedule import NoiseSchedule, SamplingGrid
from ldmprobe.errors import ConfigurationError, check_numbers, check_positive
from ldmprobe.types import PlainValues, kinds_of


class NoiseProcess(NoiseSchedule):
    """A noise process with a formula for every level, of which T are its training levels.

    Args:
        num_timesteps: T.
        first: time u of the cleanest training level; the noisiest is at u = 1, the others are evenly between.
        prediction: what the network answers.
        prior_std: standard deviation of z_T.
        settings: the subclass's own arguments, as plain values: its description.

    Raises:
        ConfigurationError: ``num_timesteps`` below 2, or v-prediction where α² + σ² is not 1.
    """

    timestep_spacing = "linspace"

    def __init__(
        self, num_timesteps: int, first: float, prediction: Prediction, prior_std: float, **settings: float
    ) -> None:
        self.name = type(self).__name__
        check_numbers(self.name, 2, num_timesteps=num_timesteps)
        self._first, self._settings = first, {**settings, "num_timesteps": num_timesteps}
        log_snr = self.log_snr_at_time(_evenly(first, 1, num_timesteps))
        log_alpha, told = self.log_alpha_at(log_snr), self.told_between(log_snr)
        super().__init__(log_alpha.exp(), (log_alpha - log_snr / 2).exp(), prediction, told.float(), prior_std)

    @abstractmethod
    def log_snr_at_time(self, u: Tensor) -> Tensor:
        """Return the log-SNR at times u in [0, 1], float64; it falls with u."""

    @abstractmethod
    def log_alpha_at(self, log_snr: Tensor) -> Tensor:
        """Return ln α at any log-SNR."""

    @abstractmethod
    def told_between(self, log_snr: Tensor) -> Tensor:
        """Return what the network is told at any log-SNR."""

    @property
    def description(self) -> PlainValues:
        return {"process": self.name, **self._settings, "prediction": self.prediction.name}

    def native_grid(self, num_steps: int, timestep_spacing: str | None = None) -> SamplingGrid:
        """Return the levels of ``num_steps`` steps as the process's authors take them: evenly in u from the noisiest
        level to the cleanest, and from there to x̂_0 itself.
        """
        self.check_num_steps(num_steps)
        self.check_only_spacing(timestep_spacing)
        return through(self, self.log_snr_at_time(_evenly(1, self._first, num_steps)))


def process_of(description: PlainValues) -> NoiseProcess:
    """Return the process of this ``description``.

    Raises:
        ConfigurationError: there is no such process, or no such kind of prediction.
    """
    settings = dict(description)
    name, answers = settings.pop("process"), settings.pop("prediction")
    kind = next((kind for kind in kinds_of(NoiseProcess) if kind.__name__ == name), None)  # type: ignore[type-abstract]
    prediction = prediction_named(answers)
    if kind is None or prediction is None:
        raise ConfigurationError(
            f"The checkpoint has a noise process {name} whose network predicts {answers!r}, one of which is a kind of "
            "your own; read it from Python, where its class has been imported."
        )
    process: NoiseProcess = kind(**settings, prediction=prediction)
    return process


class _Preserving(NoiseProcess):
    """A process driven by dz = −½ β(u) z du + …, β linear: α² = e^{−B(u)}."""

    def __init__(
        self,
        beta_0: float = 0.1,
        beta_1: float = 20.0,
        num_timesteps: int = 1000,
        prediction: Prediction | None = None,
        time_scale: float = 999.0,
    ) -> None:
        name = type(self).__name__
        check_numbers(name, 0, beta_0=beta_0)
        if beta_1 < beta_0:
            raise ConfigurationError(f"{name} got beta_0 {beta_0} and beta_1 {beta_1}; expected beta_1 the larger.")
        check_positive(name, beta_1=beta_1, time_scale=time_scale)
        self.beta_0, self.beta_1, self.time_scale = beta_0, beta_1, time_scale
        settings = {"beta_0": beta_0, "beta_1": beta_1, "time_scale": time_scale}
        super().__init__(num_timesteps, 1 / max(num_timesteps, 1), prediction or EpsilonPrediction(), 1.0, **settings)

    def exponent(self, u: Tensor) -> Tensor:
        """B(u)."""
        return self.beta_0 * u + (self.beta_1 - self.beta_0) / 2 * u**2

    def told_between(self, log_snr: Tensor) -> Tensor:
        """The time at which B = −2 ln α, times ``time_scale``."""
        exponent = -2 * self.log_alpha_at(log_snr)
        root = (self.beta_0**2 + 2 * (self.beta_1 - self.beta_0) * exponent).sqrt()
        return self.time_scale * 2 * exponent / (self.beta_0 + root)


class VPSDE(_Preserving):
    """The variance-preserving SDE, the limit of DDPM: z_T ~ N(0, I) (Song et al., 2021, arXiv:2011.13456, eq. 11, 33).

    Args:
        beta_0, beta_1: β at both ends.
        num_timesteps: T; training levels are at u = 1/T, 2/T, …, 1.
        prediction: what the network answers; default: ε.
        time_scale: the network is told ``time_scale`` · u; default: 999, as in the authors' code.

    Raises:
        ConfigurationError: numbers out of range.
    """

    def log_snr_at_time(self, u: Tensor) -> Tensor:
        return -self.exponent(u).expm1().log()

    def log_alpha_at(self, log_snr: Tensor) -> Tensor:
        return logsigmoid(log_snr) / 2


class SubVPSDE(_Preserving):
    """The sub-VP SDE, whose σ = 1 − α² is below VP's at every time: z_T ~ N(0, I) (Song et al., 2021, arXiv:2011.13456,
    eq. 29). Since α² + σ² is not 1, v-prediction is refused.

    Args:
        beta_0, beta_1, num_timesteps, prediction, time_scale: as ``VPSDE``'s.

    Raises:
        ConfigurationError: numbers out of range, or v-prediction.
    """

    def log_snr_at_time(self, u: Tensor) -> Tensor:
        exponent = self.exponent(u)
        return -exponent - 2 * (-torch.expm1(-exponent)).log()

    def log_alpha_at(self, log_snr: Tensor) -> Tensor:
        # σ is the positive root of e^λ σ² + σ − 1 = 0, since 1 − σ = α² = e^λ σ².
        sigma = 2 / (1 + (1 + 4 * log_snr.exp()).sqrt())
        return sigma.log() + log_snr / 2


class _Exploding(NoiseProcess):
    """A process with α = 1, whose network is told σ: z_T ~ N(0, σ_max² I)."""

    def __init__(
        self, sigma_min: float, sigma_max: float, num_timesteps: int, prediction: Prediction, **settings: float
    ) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ConfigurationError(
                f"{type(self).__name__} got sigma_min {sigma_min} and sigma_max {sigma_max}; expected 0 < sigma_min < "
                "sigma_max, both finite."
            )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        super().__init__(
            num_timesteps, 0.0, prediction, sigma_max, sigma_min=sigma_min, sigma_max=sigma_max, **settings
        )

    def log_alpha_at(self, log_snr: Tensor) -> Tensor:
        return torch.zeros_like(log_snr)

    def told_between(self, log_snr: Tensor) -> Tensor:
        """σ."""
        return (-log_snr / 2).exp()


class VESDE(_Exploding):
    """The variance-exploding SDE, and with L levels NCSN: σ geometric from σ_min to σ_max (Song & Ermon, 2019,
    arXiv:1907.05600, 2020, arXiv:2006.09011; Song et al., 2021, arXiv:2011.13456, eq. 9, 30).

    The network is told σ. v-prediction is refused.

    Args:
        sigma_min, sigma_max: σ of the cleanest and of the noisiest level; σ_max is to be about the largest distance
            between two data (50 for CIFAR-10's pixels).
        num_timesteps: T, or NCSN's L.
        prediction: what the network answers; default: ε. A network that answers the score goes into ``ScoreNetwork``.

    Raises:
        ConfigurationError: numbers out of range, or v-prediction.
    """

    def __init__(
        self,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        num_timesteps: int = 1000,
        prediction: Prediction | None = None,
    ) -> None:
        super().__init__(sigma_min, sigma_max, num_timesteps, prediction or EpsilonPrediction())

    def log_snr_at_time(self, u: Tensor) -> Tensor:
        return -2 * (math.log(self.sigma_min) + math.log(self.sigma_max / self.sigma_min) * u.to(torch.float64))


class EDMProcess(_Exploding):
    """EDM's noise levels: α = 1, σ from σ_min to σ_max with σ^{1/ρ} evenly spaced (Karras et al., 2022,
    arXiv:2206.00364, table 1, eq. 5).

    The network is told σ; in ``Preconditioned`` it answers x_0. v-prediction is refused.

    Args:
        sigma_min, sigma_max: the range of σ.
        rho: ρ.
        num_timesteps: T.
        prediction: what the network answers; default: x_0, as ``Preconditioned`` does.

    Raises:
        ConfigurationError: numbers out of range, or v-prediction.
    """

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        num_timesteps: int = 1000,
        prediction: Prediction | None = None,
    ) -> None:
        check_numbers("EDMProcess", 1, rho=rho)
        self.rho = rho
        super().__init__(sigma_min, sigma_max, num_timesteps, prediction or SamplePrediction(), rho=rho)

    def log_snr_at_time(self, u: Tensor) -> Tensor:
        low, high = (float(sigma ** (1 / self.rho)) for sigma in (self.sigma_min, self.sigma_max))
        return -2 * self.rho * (low + (high - low) * u.to(torch.float64)).log()


def _evenly(start: float, end: float, num: int) -> Tensor:
    return torch.linspace(start, end, num, dtype=torch.float64)
