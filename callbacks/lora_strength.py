"""LoRAStrength: how strong a LoRA should be, at the end of its training."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L

from ldmprobe.callbacks.beside_base_data import BesideBaseData
from ldmprobe.data.images import ImageData
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.pretrained.lora import has_lora
from ldmprobe.probing.lora_strength import PROBE, STRENGTHS, probe_lora_strength
from ldmprobe.probing.probe import Ranks
from ldmprobe.tracking.scalars import Detail


class LoRAStrength(BesideBaseData):
    """Denoises held-out data of both kinds at several strengths of the LoRA in training, W_0 + s (α/r) B A, and says at
    which most is gained on the new data less what is forgotten of the base model's. By default at the end of training.

    What it finds: ``probing.lora_strength.METRICS`` (docs/METRICS.md). ``ldmprobe sample``, ``probe`` and ``export``
    take the strength as ``--lora-strength``; the model card tells it.

    Args:
        base_data: data of the kind that the base model was trained on, an ImageData, as ``Forgetting``'s.
        strengths: which are tried, 0 and 1 among them; a pass over both kinds of data each.
        every_n_steps: optimizer steps between probes; None for the end alone. There is none before training, where all
            strengths are one.
        num_images, num_draws, batch_size, seed, detail: as ``Forgetting``'s.

    Raises:
        ConfigurationError: before training: ``base_data`` does not fit the model; there is no LoRA, or one of text
            encoders besides.
    """

    records = PROBE

    def __init__(
        self,
        base_data: ImageData,
        strengths: Sequence[float] = STRENGTHS,
        every_n_steps: int | None = None,
        num_images: int = 512,
        num_draws: int = 512,
        batch_size: int = 256,
        seed: int = 0,
        detail: Detail = "bands",
    ) -> None:
        super().__init__(base_data, every_n_steps or 2**62, num_images, num_draws, batch_size, seed=seed, detail=detail)
        self.strengths = tuple(strengths)

    def check(self, model: DiffusionModel) -> None:
        if not has_lora(model.network):
            raise ConfigurationError("LoRAStrength needs a LoRA; finetune with `lora`, or leave it out.")
        if model.conditioning.trained:
            raise ConfigurationError(
                "LoRAStrength varies the strength of the network's LoRA, and text encoders are trained, too; leave out "
                "`train_text_encoder`, or LoRAStrength."
            )
        super().check(model)

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord | None:
        if trainer.global_step == 0:
            return None
        model = self.subject(pl_module)
        of_base, of_new = self.kinds_of_data(trainer, model)
        with self.running(trainer, ranks) as how:
            return probe_lora_strength(
                model,
                of_base.held_out,
                of_new.held_out,
                self.strengths,
                num_draws=self.num_draws,
                batch_size=self.batch_size,
                seed=self.seed,
                **how,
            )
