r"""The noising process z_t = α_t x_0 + σ_t ε, read from a live diffusers scheduler.

.. math:: z_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad \lambda_t = \log \alpha_t^2 / \sigma_t^2 \;(\text{log-SNR})

Schedules are kept in float64 and cast where they meet the model.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ldmprobe.errors import ConfigurationError

_TOLD_OTHERWISE = {"timestep_type": "discrete", "use_flow_sigmas": False}  # settings, and what they have to be
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow")


@dataclass(frozen=True)
class SamplingGrid:
    """The noise levels that S deterministic sampling steps visit: step k goes from (α_t, σ_t)[k] to (α_s, σ_s)[k].

    Attributes:
        timesteps: shape (S,), what the denoiser is told: int64, or float32 for flow matching.
        alpha_t, sigma_t: shape (S,), float64, the level each step starts from.
        alpha_s, sigma_s: shape (S,), float64, the level it arrives at.
        clip_range: where the scheduler clips x̂_0, or None.
    """

    timesteps: Tensor
    alpha_t: Tensor
    sigma_t: Tensor
    alpha_s: Tensor
    sigma_s: Tensor
    clip_range: float | None = None

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @property
    def log_snr(self) -> Tensor:
        """log-SNR at the start of each step, shape (S,)."""
        return 2 * (self.alpha_t.log() - self.sigma_t.log())

    def after(self, start: int) -> SamplingGrid:
        """The same grid without its first ``start`` steps."""
        names = ("timesteps", "alpha_t", "sigma_t", "alpha_s", "sigma_s")
        return replace(self, **{name: getattr(self, name)[start:] for name in names})


class NoiseSchedule:
    """α_t and σ_t for every training timestep, the prediction type, and the sampling grids that diffusers would use.

    Attributes:
        alpha, sigma: shape (T,), float64, by timestep; noise grows with it.
        model_time: shape (T,), what the denoiser is told at each timestep: t itself, or T·σ_t for flow matching.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow".

    Args:
        scheduler: a diffusers scheduler with an ``alphas_cumprod`` table (DDPM, DDIM, PNDM, DPM-Solver, ...: everything
            variance preserving), or a FlowMatchEulerDiscreteScheduler without dynamic shifting.

    Raises:
        ConfigurationError: the scheduler is of neither kind, clips by dynamic thresholding, has an unknown prediction type, or
            asks an ε-prediction for x_0 where the terminal SNR is zero.
    """

    def __init__(self, scheduler: Any) -> None:
        if not hasattr(scheduler, "config"):
            raise ConfigurationError(
                f"The scheduler is {scheduler!r}, which is none of diffusers' classes with settings that it takes; expected one, such as "
                "`scheduler: {class_path: diffusers.DDIMScheduler, init_args: {prediction_type: v_prediction}}`."
            )
        name, config = type(scheduler).__name__, scheduler.config
        if config.get("thresholding", False):
            raise ConfigurationError(
                f"{name} uses dynamic thresholding, which has no closed form; set `thresholding: false`."
            )
        for setting, value in _TOLD_OTHERWISE.items():
            if config.get(setting, value) != value:
                raise ConfigurationError(
                    f"{name} has `{setting}: {config[setting]}`, by which its noise levels are not those of its table of ᾱ_t, or are told to the "
                    f"network in another way; set `{setting}: {value}`."
                )
        self.scheduler = scheduler
        if name == "FlowMatchEulerDiscreteScheduler":
            self._read_flow(scheduler)
        elif isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
            alphas_cumprod = scheduler.alphas_cumprod.detach().to("cpu", torch.float64)
            self.alpha, self.sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
            self.model_time = torch.arange(len(alphas_cumprod))
            self.prediction_type: str = config.get("prediction_type", "epsilon")
        else:
            raise ConfigurationError(
                f"{name} has no table of ᾱ_t (`alphas_cumprod`). Use a variance-preserving diffusers scheduler, such as "
                "DDIMScheduler or DDPMScheduler, or FlowMatchEulerDiscreteScheduler."
            )
        self._check_levels(name)
        known = PREDICTION_TYPES if name == "FlowMatchEulerDiscreteScheduler" else PREDICTION_TYPES[:3]
        if self.prediction_type not in known:
            raise ConfigurationError(
                f"{name} has prediction_type {self.prediction_type!r}; expected one of {', '.join(PREDICTION_TYPES[:3])}."
            )
        # Some classes of diffusers put 2⁻²⁴ in the place of the zero.
        zero_terminal = bool(config.get("rescale_betas_zero_snr")) or float(self.alpha.min()) == 0
        if self.prediction_type == "epsilon" and zero_terminal:
            raise ConfigurationError(
                f"{name} has zero terminal SNR, where a prediction of ε says nothing of x_0; set `prediction_type: v_prediction`."
            )

    def _check_levels(self, name: str) -> None:
        if len(self.alpha) < 2:
            raise ConfigurationError(
                f"{name} has num_train_timesteps {len(self.alpha)}; expected at least 2, better the usual 1000."
            )
        if not bool(self.alpha.isfinite().all() and self.sigma.isfinite().all()):
            raise ConfigurationError(
                f"{name} has noise levels that are no numbers: its ᾱ_t leave [0, 1]. Look at `beta_start` and `beta_end` (or `trained_betas`); "
                "expected betas in (0, 1)."
            )

    def _read_flow(self, scheduler: Any) -> None:
        """Rectified flow, z = (1 − σ) x_0 + σ ε, prediction u = ε − x_0 (Lipman et al., 2023, arXiv:2210.02747)."""
        curves = [f"use_{name}_sigmas" for name in ("karras", "exponential", "beta")]
        for setting in ("use_dynamic_shifting", "shift_terminal", "invert_sigmas", "stochastic_sampling", *curves):
            if scheduler.config.get(setting):
                raise ConfigurationError(
                    f"FlowMatchEulerDiscreteScheduler with `{setting}` cannot be probed; switch it off."
                )
        steps = scheduler.config.num_train_timesteps
        uniform = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        self.sigma = scheduler.shift * uniform / (1 + (scheduler.shift - 1) * uniform)
        self.alpha = 1 - self.sigma
        self.model_time = (steps * self.sigma).float()
        self.prediction_type = "flow"

    def ddim_scheduler(self, **settings: Any) -> Any:
        """The scheduler as a ``diffusers.DDIMScheduler``, with ``settings`` in the place of its own."""
        from diffusers import DDIMScheduler

        config = self.scheduler.config
        # Given one by one: from_config would put DDIM's own defaults in the place of another class's.
        own = {
            "timestep_spacing": config.get("timestep_spacing", "leading"),
            "clip_sample": config.get("clip_sample", False),
            "set_alpha_to_one": config.get("set_alpha_to_one", config.get("final_sigmas_type") != "sigma_min"),
        }
        return DDIMScheduler.from_config(config, **{**own, **settings})

    def with_settings(self, **settings: Any) -> NoiseSchedule:
        """The same schedule but for these settings of its scheduler, such as ``rescale_betas_zero_snr`` (Lin et al., 2023,
        arXiv:2305.08891): those of DDIMScheduler, which it becomes, or for flow matching those of its own class.

        Raises:
            ConfigurationError: there is no such setting, or the scheduler cannot have it.
        """
        from diffusers import DDIMScheduler

        flow = self.prediction_type == "flow"
        cls = type(self.scheduler) if flow else DDIMScheduler
        known = inspect.signature(cls).parameters
        if unknown := sorted(settings.keys() - known.keys()):
            raise ConfigurationError(
                f"{cls.__name__} has no setting {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}."
            )
        try:
            scheduler = cls.from_config(self.scheduler.config, **settings) if flow else self.ddim_scheduler(**settings)
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise ConfigurationError(
                f"The {type(self.scheduler).__name__} cannot have the settings {settings}: {error}."
            ) from error
        changed = NoiseSchedule(scheduler)
        changed.ddim_grid(1)  # knows the spacings
        return changed

    @property
    def num_timesteps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alpha)

    @cached_property
    def log_snr(self) -> Tensor:
        """λ_t for t = 0 … T−1, shape (T,), float64; −inf where the terminal SNR is zero."""
        return 2 * (self.alpha.log() - self.sigma.log())

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t for timesteps ``t`` (N,), shaped (N, 1, …) to multiply ``like`` (N, …), in its dtype and device."""
        shape = (-1, *(1,) * (like.ndim - 1))
        index = t.cpu()
        return (
            self.alpha[index].to(like.device, like.dtype).view(shape),
            self.sigma[index].to(like.device, like.dtype).view(shape),
        )

    def add_noise(self, x0: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """z_t = α_t x_0 + σ_t ε for timesteps ``t`` (N,)."""
        alpha, sigma = self.levels(t, x0)
        return alpha * x0 + sigma * epsilon

    def timesteps_at(self, log_snr: Tensor) -> Tensor:
        """The timesteps whose log-SNR is nearest to each of ``log_snr`` (K,): shape (K,), int64."""
        return (self.log_snr[None, :] - log_snr.to(torch.float64)[:, None]).abs().argmin(dim=1)

    def ddim_grid(self, num_steps: int, timestep_spacing: str | None = None) -> SamplingGrid:
        """The levels of ``num_steps`` DDIM steps as ``diffusers.DDIMScheduler`` takes them (less a stray step at t = −1 that it
        adds to some trailing grids).

        Args:
            num_steps: S, from 1 to T.
            timestep_spacing: "leading", "trailing" or "linspace"; default: the scheduler's own.

        Raises:
            ConfigurationError: S is out of range or the spacing unknown.
        """
        if not 1 <= num_steps <= self.num_timesteps:
            raise ConfigurationError(
                f"num_steps is {num_steps}; expected 1 to {self.num_timesteps}, the scheduler's training timesteps."
            )
        if self.prediction_type == "flow":
            return self._flow_grid(num_steps)
        try:
            ddim = self.ddim_scheduler(**({"timestep_spacing": timestep_spacing} if timestep_spacing else {}))
            ddim.set_timesteps(num_steps)
        except (ValueError, NotImplementedError) as error:
            raise ConfigurationError(str(error)) from error
        t = ddim.timesteps.cpu()
        t = t[t >= 0]  # of some trailing grids diffusers' rounding makes one step too many, at t = −1
        if int(t.max()) >= self.num_timesteps:
            raise ConfigurationError(
                f"{num_steps} steps with steps_offset {ddim.config.steps_offset} leave the schedule of "
                f"{self.num_timesteps} timesteps; use fewer steps or timestep_spacing 'trailing'."
            )
        # diffusers steps by T // S also where its own list of timesteps does not; follow it, so that paths agree.
        s = t - self.num_timesteps // num_steps
        a_t = self.alpha[t] ** 2
        # Of its own table, which a DDIMScheduler of the same settings need not have (CogVideoX's is shifted).
        final = torch.ones(()).double() if ddim.config.set_alpha_to_one else self.alpha[0] ** 2
        a_s = torch.where(s >= 0, self.alpha[s.clamp(min=0)] ** 2, final)
        clip_range = float(ddim.config.clip_sample_range) if ddim.config.clip_sample else None
        return SamplingGrid(t, a_t.sqrt(), (1 - a_t).sqrt(), a_s.sqrt(), (1 - a_s).clamp(min=0).sqrt(), clip_range)

    def _flow_grid(self, num_steps: int) -> SamplingGrid:
        """For flow matching the same step, z_s = α_s x̂_0 + σ_s ε̂, is Euler's."""
        euler = type(self.scheduler).from_config(self.scheduler.config)
        euler.set_shift(self.scheduler.shift)
        euler.set_timesteps(num_steps)
        sigmas = euler.sigmas.double().cpu()
        return SamplingGrid(euler.timesteps.cpu(), 1 - sigmas[:-1], sigmas[:-1], 1 - sigmas[1:], sigmas[1:])
