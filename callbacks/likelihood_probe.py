"""LikelihoodProbe: how probable the model finds held-out data, tracked over training."""

from __future__ import annotations

import lightning as L

from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.callbacks.probe_data import KeptLatents
from ldmprobe.errors import check_numbers
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.likelihood import PROBE, Flow, probe_likelihood
from ldmprobe.probing.probe import Ranks, evaluating


class LikelihoodProbe(ProbeCallback[DiffusionModel]):
    """Bits per dimension of held-out latents, by the model's probability flow, with the EMA weights if there are any.

    What it finds: ``probing.likelihood.METRICS`` (docs/METRICS.md).

    Args:
        every_n_steps: optimizer steps between probes.
        num_images: held-out images, as many as there are up to this, at least 2.
        log_snr_step: how far a step of the flow goes in log-SNR; each takes four passes of the network, with gradients.
        batch_size: latents through the network at once.
        num_reference: training images that the Gaussian beside it is fitted on.
        seed: of the noise.
    """

    records = PROBE

    def __init__(
        self,
        every_n_steps: int = 1000,
        num_images: int = 64,
        log_snr_step: float = 0.4,
        batch_size: int = 64,
        num_reference: int = 4096,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps)
        check_numbers("LikelihoodProbe", 2, num_images=num_images)
        check_numbers("LikelihoodProbe", 1e-3, 2.0, log_snr_step=log_snr_step)
        self.num_images, self.log_snr_step, self.batch_size = num_images, log_snr_step, batch_size
        self.num_reference, self.seed = num_reference, seed
        self._latents = KeptLatents(num_images, num_reference)

    def check(self, model: DiffusionModel) -> None:
        with evaluating(model.modules):
            Flow(model, self.log_snr_step)

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        model = self.subject(pl_module)
        reference = self._latents.reference(trainer, model)
        held_out = self._latents.held_out(trainer, model)
        with self.running(trainer, ranks) as how:
            return probe_likelihood(model, held_out, reference, self.log_snr_step, self.batch_size, self.seed, **how)
