"""NoisyClassification: the LightningModule that trains a classifier of noisy latents, to guide a diffusion model by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.lightning_private import datamodule_of
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import ClassConditioning
from ldmprobe.models.noisy_classifier import CLASSIFIER, ClassifierModel, NoisyClassifier
from ldmprobe.training.ema import EMA
from ldmprobe.training.image_source import CachedLatents, measure_scale, says_shape, shows_images
from ldmprobe.training.module import TrainingModule, check_names
from ldmprobe.training.rates import configured
from ldmprobe.types import Batch, PlainValues

_VALIDATED = 8  # noise levels


def adamw(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW at learning rate 3e-4 with weight decay 0.05, the default (Dhariwal & Nichol, 2021, table 11)."""
    return torch.optim.AdamW(params, lr=3e-4, weight_decay=0.05)


class NoisyClassification(TrainingModule):
    r"""Trains a classifier on noisy latents: cross-entropy of :math:`p(y \mid \alpha z_0 + \sigma\epsilon)` at log-SNRs
    that are drawn evenly, α² + σ² = 1. Batches are dicts with ``image`` and ``label``.

    Logs ``train/loss`` in nats and ``train/accuracy``; ``val/loss`` and ``val/accuracy`` on held-out data, the mean
    over eight noise levels with noise fixed per image, by the EMA weights if there are any.

    Args:
        classifier: the network.
        codec: pixels ↔ latents, as the model's that is to be guided; default: identity.
        min_log_snr, max_log_snr: the noisiest and the cleanest level.
        optimizer, lr_scheduler: any of torch's, stepped every optimizer step.
        ema_decay: of the moving average of the parameters; None for none.
        seed: of noise levels and noise: batch k draws from (seed, k, rank), so that a resumed run goes on identically.

    Raises:
        ConfigurationError: before training: data, codec and classifier do not fit each other.
    """

    batch_names = ("label",)

    def __init__(
        self,
        classifier: NoisyClassifier,
        codec: LatentCodec | None = None,
        min_log_snr: float = -8.0,
        max_log_snr: float = 10.0,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        ema_decay: float | None = 0.999,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_numbers("NoisyClassification", -20, 20, min_log_snr=min_log_snr, max_log_snr=max_log_snr)
        check_numbers("NoisyClassification", 0, seed=seed)
        if min_log_snr >= max_log_snr:
            raise ConfigurationError(
                f"NoisyClassification got min_log_snr {min_log_snr:g} and max_log_snr {max_log_snr:g}; expected the "
                "noisier (smaller) one first."
            )
        self.classifier, self.codec = classifier, codec or LatentCodec()
        self.min_log_snr, self.max_log_snr, self.seed = float(min_log_snr), float(max_log_snr), seed
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.ema = EMA(classifier, ema_decay) if ema_decay is not None else None

    # --- before training -------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        self.check_whole_in_float32()
        data = datamodule_of(self.trainer)
        self.codec.load()
        if says_shape(data):
            labels = ClassConditioning(self.classifier.config["num_classes"])
            labels.prepare(self.classifier, data, self.codec)
            if isinstance(data, CachedLatents):
                data.use_latents(self.codec, labels)
            shape = self.codec.latent_shape(data.image_shape)
            if shape[0] != self.classifier.config["channels"]:
                raise ConfigurationError(
                    f"NoisyClassifier has {self.classifier.config['channels']} channels, and latents are of shape "
                    f"{shape}; set its `channels: {shape[0]}`."
                )
        if shows_images(data):
            measure_scale(self.codec, data, self.trainer.strategy.root_device)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.codec.check_measured()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configured(list(self.classifier.parameters()), self.optimizer, self.lr_scheduler)

    # --- training --------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        z0, labels = self.codec.latents(batch), batch["label"]
        share = torch.rand(len(z0), device=z0.device)
        log_snr = self.min_log_snr + (self.max_log_snr - self.min_log_snr) * share
        logits = self.classifier(_noised(z0, torch.randn_like(z0), log_snr), log_snr)
        loss = F.cross_entropy(logits, labels)
        self.log_dict({"train/loss": loss, "train/accuracy": _accuracy(logits, labels)}, batch_size=len(z0))
        return loss

    # --- held-out data ---------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        check_names(batch, "label", "index")
        z0, labels = self.codec.latents(batch, sample_posterior=False), batch["label"]
        noise = sample_noise(batch["index"].tolist(), tuple(z0.shape[1:]), self.seed, stream=2).to(z0)
        network, found = self.classifier_model().network, []
        for level in np.linspace(self.min_log_snr, self.max_log_snr, _VALIDATED):
            log_snr = torch.full((len(z0),), float(level), device=z0.device)
            logits = network(_noised(z0, noise, log_snr), log_snr)
            found.append(torch.stack([F.cross_entropy(logits, labels), _accuracy(logits, labels)]))
        loss, accuracy = torch.stack(found).mean(0)
        for name, value in (("val/loss", loss), ("val/accuracy", accuracy)):
            self.log(name, value, prog_bar=True, batch_size=len(z0), sync_dist=True)

    test_step = validation_step

    # --- for probes, checkpoints -----------------------------------------------------------------------------------

    @property
    def _live(self) -> nn.Module:
        return self.classifier

    def classifier_model(self) -> ClassifierModel:
        """Return what probes look at: the EMA network if there is one, else the live one."""
        network, weights = self._probed
        return ClassifierModel(network, int(self.classifier.config["num_classes"]), self.codec.description, weights)

    def model_spec(self) -> PlainValues:
        return {  # its `kind` tells it from a diffusion model's
            "kind": CLASSIFIER,
            "classifier": self.classifier.config,
            "codec": self.codec.description,
            "ema": self.ema is not None,
        }


def _noised(z0: Tensor, epsilon: Tensor, log_snr: Tensor) -> Tensor:
    alpha, sigma = (torch.sigmoid(sign * log_snr).sqrt().view(-1, 1, 1, 1) for sign in (1, -1))
    return alpha * z0 + sigma * epsilon


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).float().mean()
