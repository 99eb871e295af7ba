r"""The noising process as a table of noise levels: z_t = α_t x_0 + σ_t ε at T training timesteps.

.. math:: z_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad \lambda_t = \log \alpha_t^2 / \sigma_t^2 \;(\text{log-SNR})

Every family of processes is such a table. A level's coordinate is its log-SNR; a timestep is only what one network is
told. Tables are kept in float64 and cast where they meet the model.

More than 300 lines: a schedule and the steps laid on it, each defined by the other, and levels between two timesteps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ldmprobe.diffusion.prediction import KINDS, Prediction, VPrediction, prediction_named
from ldmprobe.errors import ConfigurationError
from ldmprobe.types import PlainValues

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

_SAME = 1e-9  # levels whose log-SNR is this close are the same one
_HALVINGS = 60  # of the range of log-SNR, to find a level: to float64's precision


@dataclass(frozen=True)
class SamplingGrid:
    """The noise levels that S sampling steps visit: step k goes from (α_t, σ_t)[k] to (α_s, σ_s)[k].

    Attributes:
        timesteps: shape (S,), what the network is told at the start of each step.
        alpha_t, sigma_t: shape (S,), float64, the level each step starts from.
        alpha_s, sigma_s: shape (S,), float64, the level it arrives at.
        schedule: the noise schedule that it is laid on, for samplers that ask the network at further levels.
        clip_range: where x̂_0 is clipped, or None. A clipped step is not affine.
        cut: steps of the whole grid that it has lost, for samplers whose steps depend on how many there are.
    """

    timesteps: Tensor
    alpha_t: Tensor
    sigma_t: Tensor
    alpha_s: Tensor
    sigma_s: Tensor
    schedule: NoiseSchedule
    clip_range: float | None = None
    cut: int = 0

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @property
    def of_steps(self) -> int:
        """The number of steps of the whole grid, of which it may have lost the first."""
        return self.num_steps + self.cut

    @property
    def log_snr(self) -> Tensor:
        """log-SNR at the start of each step, shape (S,)."""
        return 2 * (self.alpha_t.log() - self.sigma_t.log())

    @property
    def prior_std(self) -> float:
        """Standard deviation of the noise z_T that sampling starts from. It is the schedule's; of a grid that starts
        below the schedule's noisiest level, that times what data of unit variance have less there.
        """
        first = math.hypot(float(self.alpha_t[0]), float(self.sigma_t[0]))
        ratio = first / math.hypot(float(self.schedule.alpha[-1]), float(self.schedule.sigma[-1]))
        return self.schedule.prior_std * (1.0 if abs(ratio - 1) < _SAME else ratio)

    def joined(self) -> SamplingGrid:
        """Return the same grid with every step arriving where the next one starts, and the last at the end: diffusers'
        DDIM steps by T // S, which is not everywhere the distance of its timesteps.
        """
        alpha, sigma = self.alpha_s.clone(), self.sigma_s.clone()
        alpha[:-1], sigma[:-1] = self.alpha_t[1:], self.sigma_t[1:]
        if self.schedule.ends_at_data:
            alpha[-1], sigma[-1] = 1, 0
        return replace(self, alpha_s=alpha, sigma_s=sigma)

    def after(self, start: int) -> SamplingGrid:
        """Return the same grid without its first ``start`` steps."""
        names = ("timesteps", "alpha_t", "sigma_t", "alpha_s", "sigma_s")
        return replace(self, **{name: vars(self)[name][start:] for name in names}, cut=self.cut + start)


class NoiseSchedule:
    """α_t and σ_t of every training timestep, and what the network is told and answers there.

    ``as_schedule`` reads one from a diffusers scheduler. A process of one's own is
    a table given to this constructor, or a subclass that computes it.

    Attributes:
        name: what messages and records call it.
        alpha, sigma: shape (T,), float64, by timestep; the log-SNR falls with it.
        model_time: shape (T,), what the network is told at each timestep.
        prediction: what the network answers.
        prior_std: standard deviation of the noise z_T that sampling starts from.
        timestep_spacing: that of ``native_grid``, where none is named.
        flow: whether diffusers' pipelines for flow matching sample it.
        clip_range: where its samplers clip x̂_0, or None.
        ends_at_data: whether sampling ends with x̂_0, and not at the cleanest timestep.
        network_wrapper: class and settings of the wrapper that its networks have to be in; None where any will do.

    Args:
        alpha, sigma: shape (T,), noisiest last.
        prediction: what the network answers.
        model_time: default: the timestep itself, 0 … T − 1.
        prior_std: default: 1, for a process that ends in standard normal noise.

    Raises:
        ConfigurationError: the table is empty, not finite, or its log-SNR rises somewhere; or v-prediction is asked for
            where α² + σ² is not 1.
    """

    def __init__(
        self,
        alpha: Tensor,
        sigma: Tensor,
        prediction: Prediction,
        model_time: Tensor | None = None,
        prior_std: float = 1.0,
    ) -> None:
        self.alpha, self.sigma = (level.detach().to("cpu", torch.float64) for level in (alpha, sigma))
        self.prediction, self.prior_std = prediction, prior_std
        self.model_time = torch.arange(len(self.alpha)) if model_time is None else model_time
        self._tables: dict[torch.device, dict[str, Tensor]] = {}
        if not len(self.alpha) == len(self.sigma) == len(self.model_time):
            raise ConfigurationError(
                f"The {self.name} has {len(self.alpha)} α, {len(self.sigma)} σ and {len(self.model_time)} timesteps; "
                "expected one of each for every training timestep."
            )
        if len(self.alpha) < 2:
            raise ConfigurationError(
                f"The {self.name} has num_train_timesteps {len(self.alpha)}; expected at least 2, better the usual "
                "1000."
            )
        if not bool(self.alpha.isfinite().all() and self.sigma.isfinite().all()):
            raise ConfigurationError(
                f"The {self.name} has noise levels that are no numbers: its ᾱ_t leave [0, 1]. Look at `beta_start` and "
                "`beta_end` (or `trained_betas`); expected betas in (0, 1)."
            )
        if bool((self.log_snr.diff() > 0).any()):
            raise ConfigurationError(
                "The noise schedule's log-SNR rises from one timestep to the next; order its levels from clean to "
                "noisy."
            )
        preserved = (self.alpha**2 + self.sigma**2 - 1).abs().max()
        if isinstance(prediction, VPrediction) and float(preserved) > 1e-4:
            raise ConfigurationError(
                "A network predicts v = α ε − σ x_0 only where α² + σ² = 1; for this noise schedule use ε, x_0, or "
                "ε − x_0 (`VelocityPrediction`)."
            )

    @classmethod
    def from_alpha_bar(
        cls, alpha_bar: Tensor, prediction: str | Prediction = "epsilon", model_time: Tensor | None = None
    ) -> NoiseSchedule:
        """Return the variance-preserving schedule of ᾱ_t = ∏ (1 − β_i), shape (T,): α = √ᾱ, σ = √(1 − ᾱ).

        Args:
            prediction: what the network answers: "epsilon", "sample" (x_0), "v_prediction", or a kind of one's own.
            model_time: what the network is told; default: 0 … T − 1.

        Raises:
            ConfigurationError: an ᾱ_t outside [0, 1], or a kind that is not known.
        """
        alpha_bar = alpha_bar.detach().to("cpu", torch.float64)
        if not bool(((alpha_bar >= 0) & (alpha_bar <= 1)).all()):
            raise ConfigurationError(
                f"alpha_bar reaches from {float(alpha_bar.min()):.4g} to {float(alpha_bar.max()):.4g}; expected shares "
                "of variance in [0, 1], such as torch.cumprod(1 - betas, 0)."
            )
        return cls(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), _kind(prediction), model_time)

    @classmethod
    def from_sigmas(
        cls, sigmas: Tensor, prediction: str | Prediction = "epsilon", model_time: Tensor | None = None
    ) -> NoiseSchedule:
        """Return the variance-exploding schedule z = x_0 + σ ε of noise levels σ (T,), in any order; a last 0 is left
        out.

        Args:
            prediction: what the network answers: "epsilon", "sample" (x_0, as EDM's D does), or a kind of one's own.
            model_time: what the network is told at each σ; default: σ itself.

        Raises:
            ConfigurationError: a negative σ, or a kind that is not known.
        """
        sigmas = sigmas.detach().to("cpu", torch.float64)
        if not bool((sigmas >= 0).all()):
            raise ConfigurationError(f"sigmas has {float(sigmas.min()):.4g} in it; expected standard deviations.")
        told = sigmas if model_time is None else model_time.detach().cpu()
        order = sigmas.argsort()[int((sigmas == 0).sum()) :]
        sigma = sigmas[order]
        end = float(sigma[-1]) if len(sigma) else 1.0
        return cls(torch.ones_like(sigma), sigma, _kind(prediction), told[order], prior_std=end)

    name = "noise schedule of your own"
    timestep_spacing = "trailing"
    flow = False
    clip_range: float | None = None
    ends_at_data = True
    network_wrapper: PlainValues | None = None

    @property
    def num_timesteps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alpha)

    @property
    def description(self) -> PlainValues:
        """The schedule as plain values, enough for a checkpoint to rebuild it."""
        return {
            "alpha": self.alpha.tolist(),
            "sigma": self.sigma.tolist(),
            "model_time": self.model_time.tolist(),
            "prior_std": self.prior_std,
            "prediction": self.prediction.name,
        }

    @cached_property
    def log_snr(self) -> Tensor:
        """λ_t for t = 0 … T − 1, shape (T,), float64; −inf where the terminal SNR is zero."""
        return 2 * (self.alpha.log() - self.sigma.log())

    @cached_property
    def rising(self) -> Tensor:
        """The timesteps whose log-SNR is finite, in the order in which it rises, from the noisiest to the cleanest."""
        return self.log_snr.isfinite().nonzero().flatten().flip(0)

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return α_t and σ_t of timesteps ``t`` (N,), shaped (N, 1, …) to multiply ``like`` (N, …), on its device, in
        its dtype.
        """
        shape = (-1, *(1,) * (like.ndim - 1))
        tables, index = self._on(like.device), t.to(like.device)
        return tables["alpha"][index].to(like.dtype).view(shape), tables["sigma"][index].to(like.dtype).view(shape)

    def model_time_at(self, t: Tensor) -> Tensor:
        """Return what the network is told at timesteps ``t`` (N,), on their device."""
        return self._on(t.device)["model_time"][t]

    def log_snr_at(self, t: Tensor) -> Tensor:
        """Return the log-SNR of timesteps ``t`` (N,), on their device."""
        return self._on(t.device)["log_snr"][t]

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        """Return the tables on ``device``, copied there once, so that a training step waits for none."""
        if device not in self._tables:
            tables = {"alpha": self.alpha, "sigma": self.sigma, "model_time": self.model_time, "log_snr": self.log_snr}
            self._tables[device] = {name: table.to(device) for name, table in tables.items()}
        return self._tables[device]

    def add_noise(self, x0: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """Return z_t = α_t x_0 + σ_t ε for timesteps ``t`` (N,)."""
        alpha, sigma = self.levels(t, x0)
        return alpha * x0 + sigma * epsilon

    def timesteps_at(self, log_snr: Tensor) -> Tensor:
        """Return the timesteps whose log-SNR is nearest to each of ``log_snr`` (K,): shape (K,), int64."""
        return (self.log_snr[None, :] - log_snr.to(torch.float64)[:, None]).abs().argmin(dim=1)

    def level_at(self, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return α, σ and what the network is told at levels of any log-SNR λ (K,), each of shape (K,), float64.

        A level of the table is its own entry, to the last bit. Between two of them σ = α e^(−λ/2), and what the network
        is told is interpolated in λ: a fraction of a timestep.

        Raises:
            ConfigurationError: a level lies outside the table's finite range, or is NaN.
        """
        wanted, last = log_snr.to("cpu", torch.float64), self.num_timesteps - 1
        ascending = self.log_snr[self.rising]
        nearest = _interpolated(wanted.nan_to_num(), ascending, self.rising.double()).round().long()
        nearest = torch.where(wanted == self.log_snr[last], last, nearest)
        listed = (wanted == self.log_snr[nearest]) | ((wanted - self.log_snr[nearest]).abs() < _SAME)
        inside = listed | ((wanted >= ascending[0]) & (wanted <= ascending[-1]))
        if not bool(inside.all()):
            raise ConfigurationError(
                f"The {self.name} reaches from log-SNR {float(ascending[0]):.4g} to {float(ascending[-1]):.4g}, and a "
                f"level at {float(wanted[~inside][0]):.4g} is asked for; choose a grid or sampler within."
            )
        between = self.log_alpha_at(wanted)
        alpha = torch.where(listed, self.alpha[nearest], between.exp())
        sigma = torch.where(listed, self.sigma[nearest], (between - wanted / 2).exp())
        return alpha, sigma, torch.where(listed, self.model_time.double()[nearest], self.told_between(wanted))

    def log_alpha_at(self, log_snr: Tensor) -> Tensor:
        """Return ln α at log-SNR λ (K,) by the process's relation of α and σ; of a table, interpolated in λ."""
        return _interpolated(log_snr, self.log_snr[self.rising], self.alpha[self.rising].log())

    def told_between(self, log_snr: Tensor) -> Tensor:
        """Return what the network is told at log-SNR λ (K,) between two timesteps: interpolated in λ."""
        return _interpolated(log_snr, self.log_snr[self.rising], self.model_time[self.rising].double())

    def level_told(self, told: Tensor) -> tuple[Tensor, Tensor]:
        """Return α and σ, (K,), float64, of the levels at which the network is told ``told`` (K,): between two
        timesteps, where ``told_between`` says so, to float64's precision.
        """
        table, wanted = self.model_time.double(), told.detach().to("cpu", torch.float64)
        nearest = (table[None, :] - wanted[:, None]).abs().argmin(dim=1)
        listed = table[nearest].float() == wanted.float()
        if bool(listed.all()):
            return self.alpha[nearest], self.sigma[nearest]
        low, high = (torch.full_like(wanted, float(end)) for end in self.log_snr[self.rising[[0, -1]]])
        rises = self.told_between(high) > self.told_between(low)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            beyond = (self.told_between(middle) > wanted) == rises
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        log_alpha = self.log_alpha_at(low)
        alpha = torch.where(listed, self.alpha[nearest], log_alpha.exp())
        return alpha, torch.where(listed, self.sigma[nearest], (log_alpha - low / 2).exp())

    def native_grid(self, num_steps: int, timestep_spacing: str | None = None) -> SamplingGrid:
        """Return the levels of ``num_steps`` sampling steps that are customary for this schedule: for a table,
        timesteps evenly spaced from the last one ("trailing"), and x̂_0 itself at the end.

        Raises:
            ConfigurationError: S is out of range, or a spacing is named that the schedule does not have.
        """
        self.check_num_steps(num_steps)
        self.check_only_spacing(timestep_spacing)
        t = torch.linspace(self.num_timesteps, 0, num_steps + 1, dtype=torch.float64)[:-1].round().long() - 1
        end = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        alpha, sigma = (torch.cat([level[t], last]) for level, last in zip((self.alpha, self.sigma), end, strict=True))
        return SamplingGrid(self.model_time[t], alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], self)

    def check_num_steps(self, num_steps: int) -> None:
        """Raise ConfigurationError unless 1 ≤ ``num_steps`` ≤ T."""
        if not 1 <= num_steps <= self.num_timesteps:
            raise ConfigurationError(
                f"num_steps is {num_steps}; expected 1 to {self.num_timesteps}, the scheduler's training timesteps."
            )

    def check_only_spacing(self, timestep_spacing: str | None) -> None:
        """Raise ConfigurationError where a spacing is named that is not the schedule's only one."""
        if timestep_spacing not in (None, self.timestep_spacing):
            raise ConfigurationError(
                f"timestep_spacing is {timestep_spacing!r}; {self.name} has {self.timestep_spacing!r} only."
            )

    def with_settings(self, **settings: object) -> NoiseSchedule:
        """Return the schedule with other settings; only one of a diffusers scheduler has any.

        Raises:
            ConfigurationError: it is none.
        """
        raise ConfigurationError(
            f"The noise schedule is a table of its own, which has no settings {', '.join(settings)}; leave out "
            "`scheduler`."
        )

    def sampling_scheduler(self, **settings: object) -> SchedulerMixin:
        """Return a diffusers scheduler whose deterministic steps are those of ``native_grid``, with ``settings`` in the
        place of its own.

        Raises:
            ConfigurationError: there is none.
        """
        raise ConfigurationError(
            "The noise schedule is a table of its own, which no scheduler of diffusers has; train with one of "
            "diffusers' to export."
        )


def _kind(prediction: str | Prediction) -> Prediction:
    found = prediction_named(prediction) if isinstance(prediction, str) else prediction
    if found is None:
        raise ConfigurationError(f"prediction is {prediction!r}; expected one of {', '.join(KINDS)}.")
    return found


def _interpolated(wanted: Tensor, ascending: Tensor, values: Tensor) -> Tensor:
    return torch.from_numpy(np.interp(wanted.numpy(), ascending.numpy(), values.numpy()))
