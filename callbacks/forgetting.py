"""Forgetting: what finetuning takes from each noise level on the base model's own kind of data, and gives it on the
new.
"""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L

from ldmprobe.callbacks.probe_callback import ProbeCallback, run_directory
from ldmprobe.callbacks.probe_data import held_out_from, held_out_of, reference_in, reference_of
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.data.images import ImageData
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.forgetting import KindOfData, probe_forgetting
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.probe import Ranks, evaluating
from ldmprobe.tracking.scalars import Detail

_log = logging.getLogger(__name__)


class Forgetting(ProbeCallback[DiffusionModel]):
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

    def __init__(
        self,
        base_data: ImageData,
        every_n_steps: int = 1000,
        num_images: int = 512,
        num_draws: int = 512,
        batch_size: int = 256,
        num_reference: int = 4096,
        seed: int = 0,
        detail: Detail = "bands",
    ) -> None:
        super().__init__(every_n_steps, detail)
        for name, value, least in (
            ("num_images", num_images, 8),
            ("num_draws", num_draws, 32),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise ConfigurationError(f"Forgetting got {name} {value}; expected at least {least}.")
        if not isinstance(base_data, ImageData):
            raise ConfigurationError(
                f"Forgetting got base_data of {type(base_data).__name__}; expected a ldmprobe.ImageData."
            )
        self.base_data = base_data
        self.num_images, self.num_draws, self.batch_size = num_images, num_draws, batch_size
        self.num_reference, self.seed = num_reference, seed
        self._references: tuple[LatentStatistics, LatentStatistics] | None = None
        self._held_out: tuple[HeldOut, HeldOut] | None = None
        self._before: ProbeRecord | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        from_rank_zero(trainer, self.base_data.prepare_data)
        super().on_fit_start(trainer, pl_module)
        if self._resuming:
            self._before = from_rank_zero(trainer, lambda: _of_the_base_model(run_directory(trainer)))

    def check(self, model: DiffusionModel) -> None:
        try:
            with evaluating(model.modules):
                self.base_data.setup("fit")
                shape = model.codec.latent_shape(self.base_data.image_shape)
                if tuple(shape) != tuple(model.latent_shape):
                    raise ConfigurationError(
                        f"its images become latents of shape {tuple(shape)}, the model's are "
                        f"{tuple(model.latent_shape)}; set its `image_size` and `channels`."
                    )
                model.conditioning.prepare(model.network, self.base_data, model.codec)
                self.base_data.use_latents(model.codec, model.conditioning)
        except ConfigurationError as error:
            raise ConfigurationError(f"Forgetting cannot use its base_data: {error}") from error

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        model = self.subject(pl_module)
        base_data = self.base_data
        if self._references is None:
            self._references = (
                reference_in(
                    trainer,
                    model,
                    "base_reference.safetensors",
                    lambda: base_data.reference_batches(self.num_reference),
                    base_data.identity.train,
                ),
                reference_of(trainer, model, self.num_reference),
            )
        first = self._held_out is None
        if self._held_out is None or model.conditioning.trained:
            self._held_out = (
                held_out_from(trainer, model, base_data.reference_batches(self.num_images, held_out=True)),
                held_out_of(trainer, model, self.num_images),
            )
        base_images, new_images = (len(held_out.latents) for held_out in self._held_out)
        if first and min(base_images, new_images) < self.num_images:
            _log.warning(
                "Forgetting was to measure on %d held-out images of each kind; there are %d of the base model's and %d "
                "of the new. Its intervals are of these: give larger held-out splits where they are too wide.",
                self.num_images,
                base_images,
                new_images,
            )
        of_base, of_new = (KindOfData(*each) for each in zip(self._held_out, self._references, strict=True))
        with self.progress(trainer) as progress:
            record = probe_forgetting(
                model,
                of_base,
                of_new,
                before=self._before,
                num_draws=self.num_draws,
                batch_size=self.batch_size,
                seed=self.seed,
                step=trainer.global_step,
                ranks=ranks,
                progress=progress,
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
