"""TrainingLoss: the raw training loss per band of log-SNR, as it trains."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor

from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.probe import Ranks
from ldmprobe.types import StateDict

METRICS = (
    Metric(
        "training_mse", "Training error by noise level",
        "Raw squared ε-error of the training samples since the last record, unweighted, by band of log-SNR, at the "
        "mean of its timesteps.",
        "squared ε-error per dimension", good="lower", log=True, pool="mean", shown="headline",
    ),
)  # fmt: skip
BAND_EDGES = torch.arange(-12.0, 12.1, 1.5, dtype=torch.float64)
_MOST_WAITING = 1000  # batches


def _by_band(log_snr: Tensor, values: Tensor) -> Tensor:
    """Return the sums (K, bands) of values (K, N) over the samples of log-SNR (N,) within each band."""
    band = torch.bucketize(log_snr, BAND_EDGES) - 1
    inside = (band >= 0) & (band < len(BAND_EDGES) - 1)
    sums = torch.zeros(len(values), len(BAND_EDGES) - 1, dtype=torch.float64)
    return sums.index_add_(1, band[inside], values[:, inside])


class TrainingLoss(ProbeCallback[DiffusionModel]):
    """Mean unweighted squared ε-error of the training samples since the last record, per band of log-SNR (fixed edges,
    1.5 apart, from −12 to 12; what is beyond is left out), at the mean log-SNR of the schedule's timesteps within it.

    Each sample counts 1/(T p(t)) times, so that the average means the same under any timestep sampler; with the
    importance- *weighted* loss, a sampler that follows the loss would hide the imbalance it follows. Needs a
    ``training_step`` that returns ``epsilon_mse``, ``log_snr`` and ``sampling_probability`` per sample, as
    LatentDiffusion's does.
    """

    records = "training"

    def __init__(self, every_n_steps: int = 100) -> None:
        super().__init__(every_n_steps)
        self._sums = torch.zeros(2, len(BAND_EDGES) - 1, dtype=torch.float64)  # Σ w·error, Σ w
        self._waiting: list[list[Tensor]] = []  # on their device, so that no step waits for it

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if isinstance(outputs, dict) and "epsilon_mse" in outputs:
            names = ("log_snr", "epsilon_mse", "sampling_probability")
            self._waiting.append([outputs[name].detach() for name in names])
            if len(self._waiting) == _MOST_WAITING:
                self._add_up()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _add_up(self) -> None:
        for values in self._waiting:
            log_snr, error, probability = (value.double().cpu() for value in values)
            weight = 1 / probability
            self._sums += _by_band(log_snr, torch.stack([weight * error, weight]))
        self._waiting = []

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord | None:
        self._add_up()
        error, weight = ranks.all_reduce_sum(self._sums.to(pl_module.device)).cpu()
        self._sums = torch.zeros_like(self._sums)
        seen = weight > 0
        if not bool(seen.any()):
            return None
        # Each sample counts as if timesteps were drawn evenly, so that this is the mean log-SNR of what was drawn; and
        # the same in every record.
        levels = self.subject(pl_module).schedule.log_snr.double().cpu()
        total, number = _by_band(levels, torch.stack([levels, torch.ones_like(levels)]))
        place = torch.where(number > 0, total / number, (BAND_EDGES[1:] + BAND_EDGES[:-1]) / 2)
        error, place = (error / weight)[seen], place[seen]
        curve = Curve(torch.full_like(place, -1).long().numpy(), place.numpy(), error.numpy())
        return ProbeRecord(self.records, trainer.global_step, curves={"training_mse": curve}, metrics=METRICS)

    # --- in a checkpoint, the sums of all ranks: rank zero's alone count after a resume ----------------------------

    def state_dict(self) -> StateDict:
        self._add_up()
        return {"sums": self._sums}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: StateDict) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        self._add_up()
        sums = self._sums.clone().to(pl_module.device)
        checkpoint["callbacks"][self.state_key]["sums"] = trainer.strategy.reduce(sums, reduce_op="sum").cpu()

    def load_state_dict(self, state_dict: StateDict) -> None:
        self._sums = state_dict["sums"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            self._sums = torch.zeros_like(self._sums)
        super().on_train_start(trainer, pl_module)
