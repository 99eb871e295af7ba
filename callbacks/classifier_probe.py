"""ClassifierProbe: how right a classifier of noisy latents is at each noise level, tracked over its training."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor

from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.callbacks.probe_data import data_source, has_held_out
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.noisy_classifier import ClassifierModel
from ldmprobe.probing.classification import PROBE, probe_classifier
from ldmprobe.probing.latent_statistics import latents_of
from ldmprobe.probing.probe import Ranks, evaluating
from ldmprobe.training.noisy_classification import NoisyClassification


class ClassifierProbe(ProbeCallback[ClassifierModel]):
    """Accuracy and calibration of a ``NoisyClassification`` by noise level, on held-out images, with the EMA weights if
    there are any.

    What it finds: ``probing.classification.METRICS`` (docs/METRICS.md).

    Args:
        every_n_steps: optimizer steps between probes.
        num_images: held-out images, as many as there are up to this, at least 2.
        batch_size: latents through the network at once.
        seed: of the noise.
    """

    records = PROBE

    def __init__(self, every_n_steps: int = 500, num_images: int = 1000, batch_size: int = 256, seed: int = 0) -> None:
        super().__init__(every_n_steps)
        check_numbers("ClassifierProbe", 2, num_images=num_images)
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self._held_out: tuple[Tensor, Tensor] | None = None

    def subject(self, pl_module: L.LightningModule) -> ClassifierModel:
        return _trained(pl_module).classifier_model()

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        module = _trained(pl_module)
        if self._held_out is None:
            self._held_out = from_rank_zero(trainer, lambda: self._read(trainer, module))
        with self.running(trainer, ranks) as how:
            return probe_classifier(
                module.classifier_model(),
                *self._held_out,
                min_log_snr=module.min_log_snr,
                max_log_snr=module.max_log_snr,
                batch_size=self.batch_size,
                seed=self.seed,
                **how,
            )

    def _read(self, trainer: L.Trainer, module: NoisyClassification) -> tuple[Tensor, Tensor]:
        if not has_held_out(trainer):
            raise ConfigurationError(
                "ClassifierProbe looks at held-out images, and the Trainer has no validation data; give it some."
            )
        with evaluating([module.codec]):
            batches = list(data_source(trainer).reference_batches(self.num_images, held_out=True))
            return latents_of(module.codec, batches), torch.cat([batch["label"].cpu() for batch in batches])


def _trained(module: L.LightningModule) -> NoisyClassification:
    if not isinstance(module, NoisyClassification):
        raise ConfigurationError(
            f"ClassifierProbe is for ldmprobe.NoisyClassification, and {type(module).__name__} trains no classifier."
        )
    return module
