"""TrainingObjective: what the optimizer sees of the noise levels, at the start and whenever it has changed."""

from __future__ import annotations

import lightning as L
import numpy as np

from ldmprobe.callbacks.probe_callback import ProbeCallback, run_directory
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.diffusion.objective import TimestepObjective, objective_of
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.objective import PROBE, objective_record
from ldmprobe.probing.probe import Ranks


class TrainingObjective(ProbeCallback[DiffusionModel]):
    """Loss weight w(λ), sampling density p(λ) and their product over log-SNR, from the module's ``objective``; no data,
    no passes.

    A record at the start, and another every ``every_n_steps`` and at the end if weights or density differ from the last
    one's: one record for a fixed weighting and sampler, a history for adaptive or steered samplers and learned
    weightings.

    What it finds: ``probing.objective.METRICS`` (docs/METRICS.md).

    Args:
        every_n_steps: optimizer steps between looks.

    Raises:
        ConfigurationError: before training: the module has no ``objective``.
    """

    records = PROBE

    def __init__(self, every_n_steps: int = 500) -> None:
        super().__init__(every_n_steps)
        self._last_regular: ProbeRecord | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        _objective_of(pl_module)

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord | None:
        step = trainer.global_step
        if self._last_regular is None and step > 0:  # resumed
            # Without the record of where training was stopped, which an unbroken run does not have.
            store = RecordStore(run_directory(trainer))
            self._last_regular = from_rank_zero(trainer, lambda: store.last_before(PROBE, step, self.is_due))
        record = objective_record(_objective_of(pl_module), step)
        if self._last_regular is not None and _same(record, self._last_regular):
            return None
        if self.is_due(step):
            self._last_regular = record
        return record


def _objective_of(pl_module: L.LightningModule) -> TimestepObjective:
    objective = objective_of(pl_module)
    if objective is None:
        raise ConfigurationError(
            f"TrainingObjective shows the `objective` of a module, and {type(pl_module).__name__} has none; give it "
            "`self.objective = ldmprobe.TimestepObjective(schedule, weighting, sampler)`, or take TrainingObjective "
            "out of the callbacks."
        )
    return objective


def _same(one: ProbeRecord, other: ProbeRecord) -> bool:
    """To rounding, so that a run resumed on another machine does not say that its objective changed."""
    return one.fingerprints == other.fingerprints and all(
        np.allclose(curve.value, other.curves[name].value, rtol=1e-6, atol=0, equal_nan=True)
        for name, curve in one.curves.items()
    )
