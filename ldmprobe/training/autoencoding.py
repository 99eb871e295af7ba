"""Autoencoding: the LightningModule that trains a first stage, the autoencoder behind a latent diffusion model."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Literal, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ldmprobe.diffusion.full_precision import without_autocast
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.features.perceptual import PerceptualDistance
from ldmprobe.lightning_private import datamodule_of
from ldmprobe.models.autoencoder import (
    as_posterior,
    autoencoder_folder,
    check_autoencoder,
    decoder_parameters,
    has_codebook,
    has_posterior,
    images_of,
    last_layer,
    latents_of,
    posterior_of,
)
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.models.pixels import as_floats, decibels
from ldmprobe.models.quantization import Quantization, VectorQuantization, has_own_codes
from ldmprobe.training.adversarial import Adversarial
from ldmprobe.training.checkpoint.spec import autoencoder_spec
from ldmprobe.training.ema import EMA
from ldmprobe.training.equivariance import Equivariance
from ldmprobe.training.image_source import image_shape_in, measured_latents
from ldmprobe.training.module import TrainingModule, check_names
from ldmprobe.training.rates import configured
from ldmprobe.training.reconstruction import Reconstruction, ReconstructionLoss
from ldmprobe.types import Batch, Component, PlainValues, StateDict

Train = Literal["all", "decoder"]
_OF_ALL_RANKS = (0, 1)  # by which draws that are the same on every rank are told apart from a rank's own


def adam(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam at learning rate 1e-4 with β = (0.5, 0.9), the default."""
    return torch.optim.Adam(params, lr=1e-4, betas=(0.5, 0.9))


class Autoencoding(TrainingModule):
    r"""Trains an autoencoder on images: batches are dicts with ``image`` (N, C, H, W) in [−1, 1].

    The loss is ℓ + w_KL · KL(q(z|x) ‖ N(0, I)) + the quantization's + the adversarial term (Rombach et al., 2022,
    appendix G), all means per image entry: the KL is in nats divided by C·H·W. The discriminator's own loss is added to
    it; their gradients never mix, so that there is one optimizer, with two groups of parameters whose gradients are
    clipped apart.

    Logs ``train/loss`` (what the autoencoder minimizes) and its parts, ``train/discriminator`` and ``val/…`` on
    held-out images, by the EMA weights if there are any and the posterior's mode: ``val/psnr`` is the mean over images,
    in dB.

    Args:
        autoencoder: a diffusers AutoencoderKL, VQModel, AutoencoderTiny or AutoencoderDC, or the folder or hub id of
            one to start from. A VQModel's codes are gone on with, and started from the first batch's latents only where
            they are those of a new one.
        reconstruction: "l1" or "mse".
        perceptual: such as PerceptualLoss; default: none.
        adversarial: a discriminator with its weight; default: none.
        kl_weight: w_KL; default: 1e-6 where there is a posterior.
        quantization: of a VQModel; default: VectorQuantization.
        log_variance: where a learnt log-variance of the reconstruction loss starts; None for none.
        equivariance: of latents to scales and rotations; default: none.
        train: "all", or "decoder": latents stay what they are, also those of a diffusion model that is trained on them.
        optimizer, lr_scheduler: any of torch's, stepped every optimizer step; the learning rate is that of both
            networks, and is multiplied by nothing.
        ema_decay: of the moving average of the autoencoder; None for none.
        ema_warmup: start with a short memory.
        compile: ``torch.compile`` encoder and decoder.
        seed: of draws from the posterior and of equivariance: batch k draws from (seed, k, rank), so that a resumed run
            goes on identically.

    Raises:
        ConfigurationError: before training: data, autoencoder and losses do not fit each other.
    """

    batch_names = ("image",)

    def __init__(
        self,
        autoencoder: str | nn.Module,
        reconstruction: Reconstruction = "l1",
        perceptual: PerceptualDistance | None = None,
        adversarial: Adversarial | None = None,
        kl_weight: float | None = None,
        quantization: Quantization | None = None,
        log_variance: float | None = None,
        equivariance: Equivariance | None = None,
        train: Train = "all",
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        ema_decay: float | None = 0.999,
        ema_warmup: bool = True,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_numbers("Autoencoding", 0, kl_weight=kl_weight, seed=seed)
        network: Component = autoencoder_folder(autoencoder).load() if isinstance(autoencoder, str) else autoencoder
        check_autoencoder(network)
        self.autoencoder = network.requires_grad_(True).train()
        self.kl_weight = _kl_weight(network, kl_weight)
        self.quantization = _quantization(network, quantization, train)
        if train == "decoder":
            network.requires_grad_(False)
            for parameter in decoder_parameters(network):
                parameter.requires_grad_(True)
        elif train not in get_args(Train):
            raise ConfigurationError(f"Autoencoding got train {train!r}; expected 'all' or 'decoder'.")
        self.encoder_is_trained = train == "all"
        self.reconstruction = ReconstructionLoss(reconstruction, perceptual, log_variance)
        self.adversarial, self.equivariance = adversarial, equivariance
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.ema = EMA(network, ema_decay, ema_warmup) if ema_decay is not None else None
        if compile:
            network.encoder.compile()
            network.decoder.compile()
        self.seed = seed
        self.image_shape: tuple[int, ...] = ()

    # --- before training -------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        self.check_whole_in_float32()
        self.image_shape = image_shape_in(datamodule_of(self.trainer))
        if self.image_shape:
            _ = AutoencoderModel(copy.deepcopy(self.autoencoder).to("meta"), self.image_shape).latent_shape
            if self.reconstruction.perceptual is not None:
                self.reconstruction.perceptual.check(self.image_shape[0])

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.adversarial is not None:
            steps = self.trainer.estimated_stepping_batches
            self.adversarial.check(self.image_shape, steps, self.trainer.precision)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = [{"params": parameters, "name": name} for name, parameters in self._trained().items() if parameters]
        return configured(groups, self.optimizer, self.lr_scheduler)

    def _trained(self) -> dict[str, list[nn.Parameter]]:
        """Return what is trained by the network that it belongs to."""
        discriminator = [] if self.adversarial is None else list(self.adversarial.parameters())
        own = {id(parameter) for parameter in discriminator}
        autoencoder = [p for p in self.parameters() if p.requires_grad and id(p) not in own]
        return {"autoencoder": autoencoder, "discriminator": discriminator}

    def on_train_start(self) -> None:
        self._begun = self.quantization is None or bool(self.quantization.begun)

    # --- training --------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        images = as_floats(batch["image"])
        with torch.set_grad_enabled(self.encoder_is_trained):
            latents, regularizer, statistics = self._encode(images)
        if self.equivariance is not None:
            latents, images = self.equivariance(latents, images)
        if self.quantization is not None:
            if not self._begun:
                self.quantization.begin(self._codebooks(), latents.detach(), self.gathered, self._generator())
                self._begun = True
            with without_autocast(images.device):
                quantized = self.quantization(self.autoencoder, latents, self.gathered)
            latents, regularizer = quantized.latents, regularizer + quantized.loss
            statistics |= {"quantization": quantized.loss.detach(), **quantized.statistics}
        decoded = images_of(self.autoencoder, latents, quantize=self.quantization is None).float()
        reconstruction, parts = self.reconstruction(images, decoded)
        loss, discriminator = reconstruction + regularizer, torch.zeros_like(reconstruction)
        if self.adversarial is not None:
            last = last_layer(self.autoencoder)
            terms = self.adversarial(
                images, decoded, reconstruction, last, self.trainer.global_step, self._mean_of_ranks
            )
            loss, discriminator = loss + terms.generator, terms.discriminator
            statistics |= {"discriminator": discriminator.detach(), **terms.statistics}
        named = {"loss": loss.detach(), **parts, **statistics}
        self.log_dict({f"train/{name}": value for name, value in named.items()}, batch_size=len(images))
        return {"loss": loss + discriminator}

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return latents in float32, drawn from the posterior where there is one, the term of its KL, and what to
        log.
        """
        if not has_posterior(self.autoencoder):
            return latents_of(self.autoencoder, images).float(), images.new_zeros(()), {}
        posterior = as_posterior(posterior_of(self.autoencoder, images).parameters.float())
        kl = posterior.kl().mean() / math.prod(images.shape[1:])
        return posterior.sample(), self.kl_weight * kl, {"kl": kl.detach()}

    def _after_step(self) -> None:
        super()._after_step()
        if self.quantization is not None:
            self.quantization.after_step(self._codebooks(), self.gathered, self._generator())

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of autoencoder and discriminator each by their own norm."""
        if not gradient_clip_val:
            return
        clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
        for group in optimizer.param_groups:
            clip(group["params"], gradient_clip_val)

    # --- quantization ----------------------------------------------------------------------------------------------

    def _codebooks(self) -> list[nn.Parameter]:
        networks = [self.autoencoder] if self.ema is None else [self.autoencoder, self.ema.network]
        return list({id(code): code for code in (network.quantize.embedding.weight for network in networks)}.values())

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed_of_batch(*_OF_ALL_RANKS))

    def _mean_of_ranks(self, tensor: Tensor) -> Tensor:
        mean: Tensor = self.trainer.strategy.reduce(tensor, reduce_op="mean")
        return mean

    # --- held-out images -------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        check_names(batch, "image")
        images, model = as_floats(batch["image"]), self.autoencoder_model()
        posterior = model.posterior(images) if has_posterior(model.network) else None
        decoded = model.decode(model.encode(images) if posterior is None else posterior.mode())
        _, parts = self.reconstruction(images, decoded)
        mse = (images - decoded).square().flatten(1).mean(1).clamp(min=1e-12)
        parts["psnr"] = decibels(mse).mean()
        if posterior is not None:
            parts["kl"] = posterior.kl().mean() / math.prod(images.shape[1:])
        for name, value in parts.items():
            self.log(f"val/{name}", value, prog_bar=name == "psnr", batch_size=len(images), sync_dist=True)

    test_step = validation_step

    # --- for probes, checkpoints -----------------------------------------------------------------------------------

    @property
    def trained_network(self) -> nn.Module:
        """The live autoencoder, whose parameters the optimizer moves."""
        return self.autoencoder

    _live = trained_network

    def autoencoder_model(self) -> AutoencoderModel:
        """Return what probes look at: the EMA network if there is one, else the live one."""
        network, weights = self._probed
        return AutoencoderModel(network, self.image_shape, weights)

    def model_spec(self) -> PlainValues:
        return autoencoder_spec(self.autoencoder_model(), self.quantization)

    def on_save_checkpoint(self, checkpoint: StateDict) -> None:
        moments = measured_latents(self.autoencoder_model(), datamodule_of(self.trainer))
        if moments:
            moments["encoder_is_trained"] = self.encoder_is_trained
        checkpoint["ldmprobe"] = {**self.model_spec(), "latents": moments}


def _kl_weight(network: nn.Module, given: float | None) -> float:
    if given is not None and not has_posterior(network):
        raise ConfigurationError(
            f"Autoencoding got kl_weight {given}, and {type(network).__name__} has no posterior; leave it out, or "
            "train an AutoencoderKL."
        )
    return 1e-6 if given is None else given


def _quantization(network: Component, given: Quantization | None, train: str) -> Quantization | None:
    if train == "decoder" or not has_codebook(network):
        if given is not None:
            raise ConfigurationError(
                f"Autoencoding got quantization {type(given).__name__}, and "
                + ("`train: decoder` leaves codes as they are" if train == "decoder" else "only a VQModel has codes")
                + "; leave it out."
            )
        return None
    quantization = given or VectorQuantization()
    quantization.begun.fill_(has_own_codes(network))  # the ones to go on with
    quantization.prepare(network)
    return quantization
