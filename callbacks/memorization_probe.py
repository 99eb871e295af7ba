"""MemorizationProbe: how much a network knows its training images by heart, tracked over training."""

from __future__ import annotations

import lightning as L

from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.callbacks.probe_data import KeptLatents
from ldmprobe.errors import check_numbers
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.memorization import PROBE, probe_memorization
from ldmprobe.probing.probe import Ranks


class MemorizationProbe(ProbeCallback[DiffusionModel]):
    """Denoises training latents and held-out latents with the same noise at the same levels, and says how far the
    network has gone from denoising both alike to a perfect copy machine; twice the passes of a DenoisingProbe.

    What it finds: ``probing.memorization_record.METRICS`` (docs/METRICS.md). The verdict on the run
    (``ldmprobe verdict``) rests on it, too.

    Args:
        every_n_steps: optimizer steps between probes.
        num_images: training images, and as many held-out ones, as there are up to this, at least 8.
        num_draws: noised latents per level, of either kind.
        batch_size: latents through the network at once.
        num_reference: training images that a perfect copy machine is made of, beside those probed.
        seed: of the noise.
    """

    records = PROBE

    def __init__(
        self,
        every_n_steps: int = 1000,
        num_images: int = 512,
        num_draws: int = 512,
        batch_size: int = 256,
        num_reference: int = 4096,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps)
        check_numbers("MemorizationProbe", 8, num_images=num_images, num_draws=num_draws)
        check_numbers("MemorizationProbe", 1, batch_size=batch_size)
        self.num_images, self.num_draws, self.batch_size = num_images, num_draws, batch_size
        self.num_reference, self.seed = num_reference, seed
        self._latents = KeptLatents(num_images, num_reference)

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        model = self.subject(pl_module)
        reference = self._latents.reference(trainer, model)
        held_out, training = self._latents.held_out(trainer, model), self._latents.training(trainer, model)
        with self.running(trainer, ranks) as how:
            return probe_memorization(
                model, training, held_out, reference, self.num_draws, self.batch_size, self.seed, **how
            )
