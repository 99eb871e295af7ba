"""LatentDiffusion: the LightningModule that trains or finetunes a latent diffusion model.

More than 300 lines: one LightningModule, whose settings and hooks are read together.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from diffusers import SchedulerMixin
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.diffusion.objective import TimestepObjective
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.timesteps import RARELY, TimestepSampler, UniformTimesteps
from ldmprobe.diffusion.weighting import LossWeighting, UniformWeighting
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.lightning_private import datamodule_of, log_interval
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import Conditioning, Unconditional
from ldmprobe.models.conditioning.label import drop_no_labels_
from ldmprobe.models.denoiser import Condition, check_denoiser, config_of
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.wrapper import check_schedule, check_weighting, innermost, wrapper_of
from ldmprobe.training.checkpoint.spec import model_spec
from ldmprobe.training.ema import EMA
from ldmprobe.training.image_source import CachedLatents, measure_scale, says_shape, shows_images
from ldmprobe.training.module import TrainingModule, check_names
from ldmprobe.training.rates import configured
from ldmprobe.training.sharding import check_strategy, check_trained, is_sharded, same_on_every_rank, shard
from ldmprobe.types import Batch, PlainValues

_SEEN_IMAGES = 16  # of which a scale that was not measured is checked
_WHOLE = 0.99  # share of a density over noise levels that a schedule has to cover, so as not to warn


def adamw(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW at learning rate 1e-4, the default."""
    return torch.optim.AdamW(params, lr=1e-4)


class LatentDiffusion(TrainingModule):
    """Trains a denoiser on the latents of images: batches are dicts with ``image`` (N, C, H, W) in [−1, 1], ``index``
    and, if conditioned, ``label``.

    Logs ``train/loss`` (weighted, what is minimized), ``val/loss`` and ``val/loss/tNNNN``: unweighted ε-errors on
    held-out data at fixed timesteps with noise fixed per image, by the EMA weights if there are any.

    Args:
        network: the denoiser; a diffusers UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel, or any module
            that follows the Denoiser protocol.
        codec: pixels ↔ latents; default: identity, diffusion in pixel space.
        scheduler: a diffusers scheduler, whose noise schedule and prediction type are taken, or a NoiseSchedule of
            one's own; default: Stable Diffusion's.
        conditioning: default: none.
        weighting: of noise levels in the loss; default: 1 on whatever the network predicts.
        timesteps: which timesteps are drawn; default: uniform.
        normalize_weighting: to mean 1 under the timesteps' density, so that a weighting is not a change of learning
            rate, too.
        optimizer, lr_scheduler: any of torch's, stepped every optimizer step.
        ema_decay: of the moving average of the network; what else is trained, such as a conditioning's parameters, has
            none, and is beside it as it was last trained. None for no average.
        ema_warmup: start with a short memory.
        compile: ``torch.compile`` the network.
        gradient_checkpointing: keep less for the backward pass and compute it anew, in the network and a trained text
            encoder: less memory, more time (Chen et al., 2016, arXiv:1604.06174).
        offset_noise: s in ε + s·n, n ~ N(0, 1) one number for each sample and channel: noise that moves the image's
            mean, too (Guttenberg, CrossLabs, 2023, "Diffusion with offset noise").
        input_perturbation: γ in z_t = α_t z_0 + σ_t (ε + γ ξ), ξ ~ N(0, I), while the target stays that of ε: inputs as
            wrong as those that sampling makes (Ning et al., 2023, arXiv:2301.11706; they take 0.1).
        validation_timesteps: how many fixed timesteps held-out images are denoised at.
        latent_shape: (c, h, w); only needed with data other than ImageData and a network that is not of diffusers.
        seed: of noise, timesteps and dropout: batch k draws from (seed, k, rank), so that a resumed run goes on
            identically.

    Raises:
        ConfigurationError: before training: data, codec, conditioning and network do not fit each other.
    """

    def __init__(
        self,
        network: nn.Module,
        codec: LatentCodec | None = None,
        scheduler: SchedulerMixin | NoiseSchedule | None = None,
        conditioning: Conditioning | None = None,
        weighting: LossWeighting | None = None,
        timesteps: TimestepSampler | None = None,
        normalize_weighting: bool = True,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        ema_decay: float | None = 0.9999,
        ema_warmup: bool = True,
        compile: bool = False,
        gradient_checkpointing: bool = False,
        offset_noise: float = 0.0,
        input_perturbation: float = 0.0,
        validation_timesteps: int = 8,
        latent_shape: tuple[int, int, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        drop_no_labels_(network)
        self.network = network
        self.codec = codec or LatentCodec()
        self.schedule: NoiseSchedule = as_schedule(scheduler if scheduler is not None else stable_diffusion_scheduler())
        self.conditioning = conditioning or Unconditional()
        self.weighting = weighting or UniformWeighting()
        self.timesteps = timesteps or UniformTimesteps()
        self.objective = TimestepObjective(self.schedule, self.weighting, self.timesteps, normalize_weighting)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.ema = EMA(network, ema_decay, ema_warmup) if ema_decay is not None else None
        if compile:
            network.compile()
        if not 1 <= validation_timesteps <= self.schedule.num_timesteps:
            raise ConfigurationError(
                f"validation_timesteps is {validation_timesteps}; expected 1 to {self.schedule.num_timesteps}."
            )
        check_numbers("LatentDiffusion", 0, offset_noise=offset_noise, input_perturbation=input_perturbation, seed=seed)
        self.offset_noise, self.input_perturbation = offset_noise, input_perturbation
        if gradient_checkpointing:
            for module in (network, *self.conditioning.trained_networks):
                _checkpoint_gradients(innermost(module))
        last = self.schedule.num_timesteps - 1
        self.validation_timesteps = np.linspace(last / 20, last, validation_timesteps).round().astype(int).tolist()
        check_schedule(network, self.schedule)
        check_weighting(network, self.weighting)
        _warn_of_what_is_not_drawn(self.timesteps, self.schedule)
        self.latent_shape = tuple(latent_shape) if latent_shape is not None else None
        self.seed = seed
        self._asked: DiffusionModel | None = None

    # --- before training -------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        check_strategy(self.trainer.strategy)
        data = datamodule_of(self.trainer)
        if not (isinstance(data, CachedLatents) and data.latents is not None):
            self.codec.load()
        image_shape = None
        if says_shape(data):
            image_shape = data.image_shape
            self.latent_shape = self.codec.latent_shape(image_shape)
            self.conditioning.prepare(self.network, data, self.codec)
            if isinstance(data, CachedLatents):
                data.use_latents(self.codec, self.conditioning)
        elif self.latent_shape is None:
            self.latent_shape = _latent_shape_of(self.network)
        condition = self.conditioning.for_samples(torch.zeros(1, dtype=torch.long))
        check_denoiser(self.network, self.latent_shape, condition, self.codec.scale.device, image_shape)
        if shows_images(data):
            measure_scale(self.codec, data, self.trainer.strategy.root_device)
            self._look_at_scale(data.reference_batches(_SEEN_IMAGES))

    def _look_at_scale(self, batches: Iterable[Batch]) -> None:
        deviation = (wrapper.settings if (wrapper := wrapper_of(self.network)) else {}).get("sigma_data")
        self.codec.warn_of_scale(batches, deviation or 1.0)

    def configure_model(self) -> None:
        """Shards the network and its average under ModelParallelStrategy."""
        if self.device_mesh is None or is_sharded(self.network):
            return
        check_trained(self, self.network)
        same_on_every_rank(self, self.trainer.strategy)
        for network in (self.network,) if self.ema is None else (self.network, self.ema.network):
            shard(network, self.device_mesh)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if not self.trainer.strategy.restore_checkpoint_after_setup:  # else what a checkpoint says is not known yet
            self.codec.check_measured()

    def look_at(self, batch: Batch) -> None:
        super().look_at(batch)
        self.conditioning.check_values(batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return configured(trained, self.optimizer, self.lr_scheduler)

    # --- training --------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The weighted loss, and for each sample (N,) what noise-level statistics need: ``epsilon_mse`` (raw),
        ``log_snr``, ``sampling_probability`` (with which its timestep was drawn).
        """
        z0 = self.codec.latents(batch)
        condition = self.conditioning.for_training(batch)
        t = self.timesteps(len(z0), self.schedule)
        probability = self.timesteps.probabilities(self.schedule)[t]  # which the losses of this batch may change
        epsilon = self._noise(z0)
        perturbed = epsilon + self.input_perturbation * torch.randn_like(z0) if self.input_perturbation else None
        errors = self._prediction_errors(self._trained_model, z0, epsilon, t.to(z0.device), condition, perturbed)
        loss = self.objective.losses(errors, t).mean()
        self._tell_sampler(t, errors.detach())
        log_snr = self.schedule.log_snr_at(t.to(z0.device)).to(errors.dtype)
        self.log("train/loss", loss, batch_size=len(z0))
        return {
            "loss": loss,
            "epsilon_mse": (errors * self.schedule.prediction.epsilon_error_scale(log_snr)).detach(),
            "log_snr": log_snr,
            "sampling_probability": probability,
        }

    def on_train_batch_end(self, outputs: dict[str, Tensor], batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        # Not by `prog_bar=True`, for which Lightning waits for the device after every batch.
        every_n = log_interval(self.trainer)
        if every_n and batch_idx % every_n == 0:
            loss = float(outputs["loss"]) * self.trainer.accumulate_grad_batches
            self.trainer.progress_bar_metrics["train/loss"] = loss

    def _noise(self, z0: Tensor) -> Tensor:
        epsilon = torch.randn_like(z0)
        if self.offset_noise:
            epsilon += self.offset_noise * torch.randn(*z0.shape[:2], 1, 1, device=z0.device, dtype=z0.dtype)
        return epsilon

    def _tell_sampler(self, t: Tensor, errors: Tensor) -> None:
        """An adaptive sampler hears of all ranks' losses, and so stays the same on every rank."""
        if not self.timesteps.adaptive:
            return
        log_snr = self.schedule.log_snr[t]
        losses = self.weighting.prediction_weight(log_snr, self.schedule.prediction).to(errors) * errors
        seen = (self.gathered(value.to(errors.device)) for value in (t, log_snr, losses))
        self.timesteps.observe(*(value.cpu() for value in seen))

    def _prediction_errors(
        self,
        model: DiffusionModel,
        z0: Tensor,
        epsilon: Tensor,
        t: Tensor,
        condition: Condition,
        perturbed: Tensor | None = None,
    ) -> Tensor:
        """Return the mean squared error of each prediction, (N,), in its own units; the network sees ``perturbed``, if
        given, in place of ε.
        """
        alpha, sigma = self.schedule.levels(t, z0)
        z_t = alpha * z0 + sigma * (epsilon if perturbed is None else perturbed)
        answer = model.predict(z_t, self.schedule.model_time_at(t), condition)
        target = self.schedule.prediction.target(z0, epsilon, alpha, sigma)
        return (answer.float() - target).pow(2).flatten(1).mean(1)

    # --- held-out data ---------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        check_names(batch, "index")
        z0 = self.codec.latents(batch, sample_posterior=False)
        epsilon = sample_noise(batch["index"].tolist(), tuple(z0.shape[1:]), self.seed, stream=2).to(z0.device)
        condition = self.conditioning.from_batch(batch)
        model = self.diffusion_model()
        losses = []
        for timestep in self.validation_timesteps:
            t = torch.full((len(z0),), timestep, device=z0.device)
            scale = self.schedule.prediction.epsilon_error_scale(self.schedule.log_snr[timestep])
            losses.append(self._prediction_errors(model, z0, epsilon, t, condition).mean() * float(scale))
            self.log(f"val/loss/t{timestep:04d}", losses[-1], batch_size=len(z0), sync_dist=True)
        self.log("val/loss", torch.stack(losses).mean(), prog_bar=True, batch_size=len(z0), sync_dist=True)

    test_step = validation_step

    # --- for probes, checkpoints -----------------------------------------------------------------------------------

    @property
    def trained_network(self) -> nn.Module:
        """The live network, whose parameters the optimizer moves."""
        return self.network

    _live = trained_network

    @property
    def _trained_model(self) -> DiffusionModel:
        """The model that a step asks, made once for each network."""
        if self._asked is None or self._asked.network is not self.network:
            self._asked = self.diffusion_model(self.network)
        return self._asked

    def diffusion_model(self, network: nn.Module | None = None) -> DiffusionModel:
        """Return what probes look at: the EMA network if there is one, else the live one."""
        if self.latent_shape is None:
            self.latent_shape = _latent_shape_of(self.network)
        probed, weights = self._probed
        asked = probed if network is None else network
        return DiffusionModel(asked, self.schedule, self.latent_shape, self.codec, self.conditioning, weights)

    def model_spec(self) -> PlainValues:
        return model_spec(self.diffusion_model(self.network))


def stable_diffusion_scheduler() -> SchedulerMixin:
    """DDIM on Stable Diffusion's schedule: 1,000 steps, scaled-linear β from 0.00085 to 0.012, no clipping (Rombach et
    al., 2022).
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _warn_of_what_is_not_drawn(timesteps: TimestepSampler, schedule: NoiseSchedule) -> None:
    """Warn of a density over noise levels that reaches beyond those of the schedule, and of one that hardly has the
    level without signal; of flow matching it is customary that it does not.
    """
    share = timesteps.coverage(schedule)
    if share < _WHOLE:
        warnings.warn(
            f"{type(timesteps).__name__} has {1 - share:.1%} of its density beyond the schedule's log-SNR "
            f"{float(schedule.log_snr.min()):.1f} … {float(schedule.log_snr.max()):.1f}, where nothing is drawn; move "
            "or narrow it, or widen the schedule.",
            stacklevel=3,
        )
    if float(schedule.alpha[-1]) > 0 or schedule.flow:
        return
    last, even = float(timesteps.probabilities(schedule)[-1]), 1 / schedule.num_timesteps
    if last < RARELY * even:
        warnings.warn(
            f"{type(timesteps).__name__} draws the last timestep, of zero terminal SNR, with probability {last:.1g} "
            f"(evenly drawn: {even:.1g}), so that the level that sampling begins at is hardly trained; use timesteps "
            "that include it, such as UniformTimesteps.",
            stacklevel=3,
        )


def _checkpoint_gradients(module: nn.Module) -> None:
    """By the method that diffusers or transformers (since version 5; before) has for it."""
    for method in ("enable_gradient_checkpointing", "activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if hasattr(module, method) and getattr(module, "_supports_gradient_checkpointing", True):
            getattr(module, method)()
            return
    raise ConfigurationError(
        f"{type(module).__name__} has no gradient checkpointing; leave out `gradient_checkpointing`."
    )


def _latent_shape_of(network: nn.Module) -> tuple[int, ...]:
    config = config_of(network)
    size, channels = config.get("sample_size"), [config.get("in_channels"), config.get("out_channels")]
    if size is None or channels[0] is None:
        raise ConfigurationError(
            f"The latent shape of {type(network).__name__} is not known; give LatentDiffusion its `latent_shape: [c, "
            "h, w]`."
        )
    height, width = (size, size) if isinstance(size, int) else size
    # A conditioning's concat adds channels on one side, a predicted variance on the other.
    return (min(number for number in channels if number is not None), height, width)
