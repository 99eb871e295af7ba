"""PrecisionProbe: what the network would lose in fewer bits, tracked over training."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L

from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.callbacks.probe_data import KeptLatents
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.precision import FORMATS, PROBE, probe_precision
from ldmprobe.probing.probe import Ranks
from ldmprobe.training.sharding import is_sharded


class PrecisionProbe(ProbeCallback[DiffusionModel]):
    """Denoises the same held-out latents by the network and by copies of it in fewer bits, and says what they lose at
    each noise level. With the defaults, three fourths of a DenoisingProbe; one copy is held at a time.

    What it finds: ``probing.precision.METRICS`` (docs/METRICS.md).

    Args:
        every_n_steps: optimizer steps between probes.
        formats: of the copies: "bf16", "fp16", "fp8", "int8", "compiled".
        num_images: held-out images, as there are up to this, at least 2.
        num_draws: noised latents per level and copy.
        batch_size: latents through the network at once.
        seed: of the noise.

    Raises:
        ConfigurationError: another format; before training: the network is sharded.
    """

    records = PROBE

    def __init__(
        self,
        every_n_steps: int = 5000,
        formats: Sequence[str] = ("bf16", "int8"),
        num_images: int = 128,
        num_draws: int = 128,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps)
        check_numbers("PrecisionProbe", 2, num_images=num_images, num_draws=num_draws)
        check_numbers("PrecisionProbe", 1, batch_size=batch_size)
        if unknown := [name for name in formats if name not in FORMATS]:
            raise ConfigurationError(
                f"PrecisionProbe got formats {list(formats)}; there is no {unknown[0]!r}, only {', '.join(FORMATS)}."
            )
        self.formats, self.num_images, self.num_draws = tuple(formats), num_images, num_draws
        self.batch_size, self.seed = batch_size, seed
        self._latents = KeptLatents(num_images)

    def check(self, model: DiffusionModel) -> None:
        if is_sharded(model.network):
            raise ConfigurationError(
                "PrecisionProbe copies the network, and ModelParallelStrategy has it in shards; use `strategy: ddp`, "
                "or leave PrecisionProbe out."
            )

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        model = self.subject(pl_module)
        held_out = self._latents.held_out(trainer, model)
        with self.running(trainer, ranks) as how:
            return probe_precision(
                model,
                held_out,
                {name: FORMATS[name] for name in self.formats},
                self.num_draws,
                self.batch_size,
                self.seed,
                **how,
            )
