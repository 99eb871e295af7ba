"""Forgetting: what finetuning takes from each noise level on the base model's own kind of data, and gives it on the
new.
"""

from __future__ import annotations

from pathlib import Path

import lightning as L

from ldmprobe.callbacks.beside_base_data import BesideBaseData
from ldmprobe.callbacks.probe_callback import run_directory
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.probing.forgetting import probe_forgetting
from ldmprobe.probing.probe import Ranks


class Forgetting(BesideBaseData):
    """Runs the denoising probe on held-out data of the base model's kind and on the Trainer's, and compares both, draw
    by draw, with what it found before the first optimizer step. No copy of the base model is kept: the record of step 0
    has the errors of its every draw.

    What it finds: ``probing.forgetting.METRICS`` (docs/METRICS.md).

    Args:
        base_data: data of the kind that the base model was trained on, an ImageData; seen through the codec and
            conditioning of the model in training. What the linear denoiser is fitted on stays in
            ``base_reference.safetensors`` in the run's directory.
        every_n_steps: optimizer steps between probes.
        num_images: held-out images of each kind, as many as there are up to this; that there are fewer is warned of.
        num_draws: noised latents per level and kind; with fewer images, each is drawn several times.
        batch_size: latents through the network at once.
        num_reference: training images of each kind that its linear denoiser is fitted on.
        seed: of the noise.
        detail: what loggers are sent: "bands" of log-SNR, or also all "levels".

    Raises:
        ConfigurationError: before training: ``base_data`` does not fit the model; or a run is resumed whose base model
            was not measured.
    """

    records = "forgetting"
    _before: ProbeRecord | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self._resuming:
            self._before = from_rank_zero(trainer, lambda: _of_the_base_model(run_directory(trainer)))

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        model = self.subject(pl_module)
        of_base, of_new = self.kinds_of_data(trainer, model)
        with self.running(trainer, ranks) as how:
            record = probe_forgetting(
                model,
                of_base,
                of_new,
                before=self._before,
                num_draws=self.num_draws,
                batch_size=self.batch_size,
                seed=self.seed,
                **how,
            )
        self._before = self._before or record
        return record


def _of_the_base_model(run_dir: Path) -> ProbeRecord:
    record = RecordStore(run_dir).last_before("forgetting", step=1)
    if record is None:
        raise ConfigurationError(
            "Forgetting compares with the base model, which is measured before the first optimizer step, and there is "
            f"no such record in {run_dir}: start anew with Forgetting among the callbacks, or take it out and compare "
            "the two models afterwards by ldmprobe.probe_forgetting."
        )
    return record
