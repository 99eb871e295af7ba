"""Noise schedules read from live diffusers schedulers: one class for each kind of scheduler that diffusers has."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ldmprobe.diffusion.prediction import KINDS, EpsilonPrediction, Prediction, VelocityPrediction
from ldmprobe.diffusion.schedule import NoiseSchedule, SamplingGrid
from ldmprobe.errors import ConfigurationError
from ldmprobe.types import PlainValues

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

_TOLD_OTHERWISE = {"timestep_type": "discrete", "use_flow_sigmas": False}  # settings, and what they have to be
_VARIANCE_PRESERVING = ("epsilon", "sample", "v_prediction")  # diffusers' names of what such networks predict


def as_schedule(source: SchedulerMixin | NoiseSchedule) -> NoiseSchedule:
    """Return the noise schedule of a diffusers scheduler; a NoiseSchedule is returned as it is.

    Args:
        source: a scheduler with a table ``alphas_cumprod`` (DDPM, DDIM, PNDM, DPM-Solver, ...: everything variance
            preserving), or a FlowMatchEulerDiscreteScheduler without dynamic shifting.

    Raises:
        ConfigurationError: it is of neither kind, clips by dynamic thresholding, has an unknown prediction type, or
            asks an ε-prediction for x_0 where the terminal SNR is zero.
    """
    if isinstance(source, NoiseSchedule):
        return source
    if not hasattr(source, "config"):
        raise ConfigurationError(
            f"The scheduler is {source!r}, which is none of diffusers' classes with settings that it takes; expected "
            "one, such as `scheduler: {class_path: diffusers.DDIMScheduler, init_args: {prediction_type: "
            "v_prediction}}`."
        )
    name = type(source).__name__
    if source.config.get("thresholding", False):
        raise ConfigurationError(
            f"{name} uses dynamic thresholding, which has no closed form; set `thresholding: false`."
        )
    for setting, value in _TOLD_OTHERWISE.items():
        if source.config.get(setting, value) != value:
            raise ConfigurationError(
                f"{name} has `{setting}: {source.config[setting]}`, by which its noise levels are not those of its "
                f"table of ᾱ_t, or are told to the network in another way; set `{setting}: {value}`."
            )
    if name == "FlowMatchEulerDiscreteScheduler":
        return FlowMatchSchedule(source)
    if isinstance(getattr(source, "alphas_cumprod", None), Tensor):
        return VariancePreservingSchedule(source)
    raise ConfigurationError(
        f"{name} has no table of ᾱ_t (`alphas_cumprod`). Use a variance-preserving diffusers scheduler, such as "
        "DDIMScheduler or DDPMScheduler, or FlowMatchEulerDiscreteScheduler."
    )


class DiffusersSchedule(NoiseSchedule):
    """A noise schedule with the diffusers scheduler that it was read from.

    Attributes:
        scheduler: the scheduler.
    """

    def __init__(
        self,
        scheduler: SchedulerMixin,
        alpha: Tensor,
        sigma: Tensor,
        prediction: Prediction,
        model_time: Tensor | None = None,
    ) -> None:
        self.scheduler, self.name = scheduler, type(scheduler).__name__
        self.timestep_spacing: str = scheduler.config.get("timestep_spacing", "leading")
        super().__init__(alpha, sigma, prediction, model_time)

    @property
    def description(self) -> PlainValues:
        settings = {name: value for name, value in dict(self.scheduler.config).items() if not name.startswith("_")}
        return {"class_name": type(self.scheduler).__name__, **settings}

    def with_settings(self, **settings: object) -> NoiseSchedule:
        """Return the same schedule but for these settings of its scheduler, such as ``rescale_betas_zero_snr`` (Lin et
        al., 2023, arXiv:2305.08891): those of the class of ``sampling_scheduler``, which it becomes.

        Raises:
            ConfigurationError: there is no such setting, or the scheduler cannot have it.
        """
        cls = type(self.sampling_scheduler())
        known = inspect.signature(cls).parameters
        if unknown := sorted(settings.keys() - known.keys()):
            raise ConfigurationError(
                f"{cls.__name__} has no setting {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}."
            )
        try:
            scheduler = self.sampling_scheduler(**settings)
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise ConfigurationError(
                f"The {type(self.scheduler).__name__} cannot have the settings {settings}: {error}."
            ) from error
        changed = as_schedule(scheduler)
        changed.native_grid(1)  # knows the spacings
        return changed


class VariancePreservingSchedule(DiffusersSchedule):
    """z_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε (Ho et al., 2020, arXiv:2006.11239, eq. 4); the network is told t."""

    def __init__(self, scheduler: SchedulerMixin) -> None:
        name = type(scheduler).__name__
        prediction_type = scheduler.config.get("prediction_type", "epsilon")
        if prediction_type not in _VARIANCE_PRESERVING:
            raise ConfigurationError(
                f"{name} has prediction_type {prediction_type!r}; expected one of {', '.join(_VARIANCE_PRESERVING)}."
            )
        prediction = KINDS[prediction_type]
        alphas_cumprod = scheduler.alphas_cumprod.detach().to("cpu", torch.float64)
        # Some classes of diffusers put 2⁻²⁴ in the place of the zero.
        zero_terminal = bool(scheduler.config.get("rescale_betas_zero_snr")) or float(alphas_cumprod.min()) == 0
        if isinstance(prediction, EpsilonPrediction) and zero_terminal:
            raise ConfigurationError(
                f"{name} has zero terminal SNR, where a prediction of ε says nothing of x_0; set `prediction_type: "
                "v_prediction`."
            )
        super().__init__(scheduler, alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), prediction)
        if scheduler.config.get("clip_sample", False):
            self.clip_range = float(scheduler.config.get("clip_sample_range", 1.0))

    def log_alpha_at(self, log_snr: Tensor) -> Tensor:
        """α² = sigmoid(λ)."""
        return logsigmoid(log_snr) / 2

    def sampling_scheduler(self, **settings: object) -> SchedulerMixin:
        """Return the scheduler as a ``diffusers.DDIMScheduler``."""
        from diffusers import DDIMScheduler

        config = self.scheduler.config
        # Given one by one: from_config would put DDIM's own defaults in the place of another class's.
        own = {
            "timestep_spacing": config.get("timestep_spacing", "leading"),
            "clip_sample": config.get("clip_sample", False),
            "set_alpha_to_one": config.get("set_alpha_to_one", config.get("final_sigmas_type") != "sigma_min"),
        }
        return DDIMScheduler.from_config(config, **{**own, **settings})

    def native_grid(self, num_steps: int, timestep_spacing: str | None = None) -> SamplingGrid:
        """Return the levels of ``num_steps`` DDIM steps as ``diffusers.DDIMScheduler`` takes them (less a stray step at
        t = −1 that it adds to some trailing grids).

        Args:
            num_steps: S, from 1 to T.
            timestep_spacing: "leading", "trailing" or "linspace"; default: the scheduler's own.

        Raises:
            ConfigurationError: S is out of range or the spacing unknown.
        """
        self.check_num_steps(num_steps)
        try:
            ddim = self.sampling_scheduler(**({"timestep_spacing": timestep_spacing} if timestep_spacing else {}))
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
        sigma_t, sigma_s = (1 - a_t).sqrt(), (1 - a_s).clamp(min=0).sqrt()
        return SamplingGrid(t, a_t.sqrt(), sigma_t, a_s.sqrt(), sigma_s, self, self.clip_range)


class FlowMatchSchedule(DiffusersSchedule):
    """Rectified flow, z = (1 − σ) x_0 + σ ε with answer u = ε − x_0 (Lipman et al., 2023, arXiv:2210.02747); the
    network is told T·σ.
    """

    flow = True

    def __init__(self, scheduler: SchedulerMixin) -> None:
        curves = [f"use_{name}_sigmas" for name in ("karras", "exponential", "beta")]
        for setting in ("use_dynamic_shifting", "shift_terminal", "invert_sigmas", "stochastic_sampling", *curves):
            if scheduler.config.get(setting):
                raise ConfigurationError(
                    f"FlowMatchEulerDiscreteScheduler with `{setting}` cannot be probed; switch it off."
                )
        steps = scheduler.config.num_train_timesteps
        uniform = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        sigma = scheduler.shift * uniform / (1 + (scheduler.shift - 1) * uniform)
        super().__init__(scheduler, 1 - sigma, sigma, VelocityPrediction(), (steps * sigma).float())

    def log_alpha_at(self, log_snr: Tensor) -> Tensor:
        """α = 1 − σ = sigmoid(λ/2)."""
        return logsigmoid(log_snr / 2)

    def told_between(self, log_snr: Tensor) -> Tensor:
        """T·σ."""
        return self.num_timesteps * torch.sigmoid(-log_snr / 2)

    def sampling_scheduler(self, **settings: object) -> SchedulerMixin:
        """Return a scheduler of the same class."""
        scheduler = type(self.scheduler).from_config(self.scheduler.config, **settings)
        if "shift" not in settings:
            scheduler.set_shift(self.scheduler.shift)
        return scheduler

    def native_grid(self, num_steps: int, timestep_spacing: str | None = None) -> SamplingGrid:
        """Return the levels of ``num_steps`` Euler steps as ``diffusers.FlowMatchEulerDiscreteScheduler`` takes them.

        Raises:
            ConfigurationError: S is out of range.
        """
        self.check_num_steps(num_steps)
        euler = self.sampling_scheduler()
        euler.set_timesteps(num_steps)
        sigmas = euler.sigmas.double().cpu()
        return SamplingGrid(euler.timesteps.cpu(), 1 - sigmas[:-1], sigmas[:-1], 1 - sigmas[1:], sigmas[1:], self)
