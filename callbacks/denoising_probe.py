"""DenoisingProbe: how well each noise level denoises held-out data, tracked over training."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import lightning as L

from ldmprobe.callbacks.probe_callback import ProbeCallback, run_directory
from ldmprobe.callbacks.probe_data import KeptLatents
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.errors import check_numbers
from ldmprobe.io.plain_text import plain
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.lightning_private import logger_step
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.denoising_record import PROBE
from ldmprobe.probing.probe import Ranks
from ldmprobe.tracking.loggers import log_verdict
from ldmprobe.tracking.run_verdict import verdict_on
from ldmprobe.tracking.scalars import Detail, verdict_metrics


class DenoisingProbe(ProbeCallback[DiffusionModel]):
    """Denoises held-out latents, with noise fixed per image, on a fixed grid of log-SNR; no sampling.

    What it finds: ``probing.denoising.METRICS`` (docs/METRICS.md). After each probe it comes to a verdict on the run
    (``ldmprobe verdict``), whose ``verdict/code``, ``verdict/recoverable_nats`` and ``verdict/worst_band`` are metrics
    like its own.

    Args:
        every_n_steps: optimizer steps between probes.
        num_images: held-out images, as many as there are up to this.
        num_draws: noised latents per level; with fewer images, each is drawn several times.
        batch_size: latents through the network at once.
        num_reference: training images that the linear denoiser is fitted on; all probes of a run share them, as many
            as the one that wants most.
        seed: of the noise.
        image_loss: also the error of decoded x̂_0, in pixels.
        held_out: batches of held-out images, for a Trainer that validates on none; default: the validation data.
        detail: what loggers are sent: "bands" of log-SNR, or also all "levels".
    """

    records = PROBE

    def __init__(
        self,
        every_n_steps: int = 500,
        num_images: int = 512,
        num_draws: int = 512,
        batch_size: int = 256,
        num_reference: int = 4096,
        seed: int = 0,
        held_out: Iterable[Any] | None = None,
        image_loss: bool = False,
        detail: Detail = "bands",
    ) -> None:
        super().__init__(every_n_steps, detail)
        check_numbers("DenoisingProbe", 8, num_images=num_images)
        check_numbers("DenoisingProbe", 32, num_draws=num_draws)
        check_numbers("DenoisingProbe", 1, batch_size=batch_size)
        self.num_images, self.num_draws, self.batch_size = num_images, num_draws, batch_size
        self.num_reference, self.seed, self.image_loss = num_reference, seed, image_loss
        self._latents = KeptLatents(num_images, num_reference, held_out)
        self._previous: ProbeRecord | None = None
        self._began = 0.0

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        self._began = time.monotonic()
        model = self.subject(pl_module)
        reference = self._latents.reference(trainer, model)
        held_out = self._latents.held_out(trainer, model)
        if self._previous is None and trainer.global_step > 0:  # resumed
            store = RecordStore(run_directory(trainer))
            self._previous = from_rank_zero(trainer, lambda: store.last_before(PROBE, trainer.global_step))
        with self.running(trainer, ranks) as how:
            self._previous = probe_denoising(
                model,
                held_out,
                reference,
                num_draws=self.num_draws,
                batch_size=self.batch_size,
                seed=self.seed,
                image_loss=self.image_loss,
                previous=self._previous,
                **how,
            )
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._previous.provenance["learning_rate"] = float(rates[0]) if rates else None
        return self._previous

    def conclude(self, trainer: L.Trainer) -> dict[str, float]:
        """Come to a verdict, send it to the loggers, and say it in a line above the progress bar."""
        verdict = from_rank_zero(trainer, lambda: verdict_on(run_directory(trainer), until=trainer.global_step))
        if trainer.is_global_zero:
            log_verdict(trainer.loggers, verdict, logger_step(trainer, trainer.global_step))
            if trainer.progress_bar_callback is not None:
                seconds = time.monotonic() - self._began
                trainer.progress_bar_callback.print(plain(f"{verdict.news} (probed in {seconds:.1f} s)"))
        return verdict_metrics(verdict)
