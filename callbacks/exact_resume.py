"""ExactResume: what Lightning leaves out of a checkpoint, and a last checkpoint when the process is told to end."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ldmprobe import lightning_private as private
from ldmprobe.callbacks.probe_callback import run_directory
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.callbacks.same_optimization import (
    check_no_tuner,
    check_rate_is_there,
    check_same_optimization,
    check_schedules_last,
    optimization,
)
from ldmprobe.callbacks.superseded import set_aside_recorded
from ldmprobe.data.images import ImageData
from ldmprobe.training.checkpoint.newest import set_aside_later
from ldmprobe.training.checkpoint.paths import paths_here
from ldmprobe.training.checkpoint.resume import saving_here, say
from ldmprobe.types import Batch, PlainValues, StateDict

LAST_WORDS = "terminated.ckpt"
_KEY = "ldmprobe.ExactResume"


class ExactResume(L.Callback):
    """A run that goes on from a checkpoint does what it would have done had it not been stopped, curves included.
    ``ldmprobe fit`` always has it; for a Trainer of your own it is ``callbacks=[..., ExactResume()]``.

    Beside what Lightning saves, a checkpoint then holds

    - the gradients, if it falls between batches whose gradients are accumulated (their mean over the ranks);
    - the row of metrics that is logged only after it;
    - that a validation is due after its batch and has not run;
    - the classes of optimizers and learning-rate schedulers, and the number of processes.

    With other optimizers or schedulers the run is refused, and so is one that outlasts its OneCycleLR, or has one of
    Lightning's tuners among its callbacks; another number of processes is told.

    Rows that loggers still hold are written before it, so that none it counts on is lost with the process. Records of
    later steps than the checkpoint's, and rows of a ResumableCSVLogger, are set aside when the run goes on, and taken
    anew. Where the run directory has been renamed or copied, a ModelCheckpoint goes on with the files that came with
    it.

    On SIGTERM, as from a scheduler that needs the machine, the batch is finished and ``terminated.ckpt`` saved beside
    the other checkpoints, until the run has ended. Not when the signal breaks off a probe, and not with several
    processes, whose ranks hear of it at different times: the run then goes on from the checkpoint before, as exactly.
    """

    def __init__(self) -> None:
        self._extra: PlainValues = {}
        self._schedules: list[Batch] = []  # of the checkpoint
        self._trained = self._terminating = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            check_rate_is_there(trainer, pl_module)

    # --- into the checkpoint ---------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: StateDict) -> None:
        for logger in trainer.loggers:
            logger.save()
        state, accumulating = private.LoopState(checkpoint), private.is_accumulating(trainer)
        extra: StateDict = {"optimization": optimization(trainer)}
        if accumulating:
            extra["gradients"] = _gradients(trainer, pl_module)
        if state.in_batch_end:
            every_n_steps = private.log_interval(trainer)
            if not accumulating and every_n_steps > 0 and (state.steps + 1) % every_n_steps == 0:
                extra["row"] = {"step": state.steps, "metrics": private.pending_row(trainer)}
            if state.validation_due(trainer):
                state.count_batch()
                extra["validating"] = True
        elif self._terminating and trainer.validating:
            extra["validating"] = True
        elif self._terminating:  # as in the hook in which checkpoints are saved
            state.reopen_batch(stepped=not accumulating)
        if "validating" in extra:
            state.begin_validation()
        checkpoint[_KEY] = extra

    # --- out of the checkpoint -------------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: StateDict) -> None:
        if checkpoint["global_step"] > 0:  # a tuner restores its own, of step 0
            check_no_tuner(trainer)
        if isinstance(private.datamodule_of(trainer), ImageData) and ImageData.__qualname__ not in checkpoint:
            rank_zero_warn(
                "The checkpoint does not say what data it was trained on, which was no ImageData: if it has seen rows "
                "that are held out now, held-out numbers flatter it."
            )
        self._extra, self._schedules = checkpoint.get(_KEY, {}), checkpoint.get("lr_schedulers", [])
        callbacks = [callback for callback, _ in saving_here(trainer)]
        states = checkpoint.get("callbacks", {})
        changes = from_rank_zero(trainer, lambda: [_paths_here(callback, callbacks, states) for callback in callbacks])
        for callback, changed in zip(callbacks, changes, strict=True):
            if callback.state_key in states:
                states[callback.state_key] |= changed
            elif changed:
                callback.last_model_path = changed["last_model_path"]
        if trainer.state.fn == "fit" and trainer.strategy.restore_checkpoint_after_setup:
            self.on_fit_start(trainer, pl_module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        theirs, ours = self._extra.get("optimization", {}), optimization(trainer)
        check_same_optimization(theirs, ours)
        check_schedules_last(trainer, self._schedules)
        before, now = (each.get("processes") for each in (theirs, ours))
        if before not in (None, now):
            rank_zero_warn(
                f"The checkpoint was trained by {before} process(es) and goes on with {now}: an optimizer step now "
                f"takes {now / before:g} times as many images, and in another order, unless `batch_size` makes up for "
                "it."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        extra, self._extra, self._trained = self._extra, {}, False
        set_aside_recorded(trainer, run_directory(trainer))
        step = trainer.global_step
        if trainer.is_global_zero and (
            later := set_aside_later((folder for _, folder in saving_here(trainer)), after=step)
        ):
            places = ", ".join(map(str, later))
            say(f"going on from step {step}; checkpoints of later steps are set aside, as {places}.")
        parameters = dict(pl_module.named_parameters())
        for name, gradient in extra.get("gradients", {}).items():
            parameters[name].grad = gradient.to(parameters[name])
        if row := extra.get("row"):
            for logger in trainer.loggers:
                logger.log_metrics(dict(row["metrics"]), step=row["step"])
        if "validating" in extra:  # that it must validate, Lightning has seen; its counts go on from before
            private.reset_validation_counts(trainer)

    # --- told to end -----------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        self._trained = True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        terminated = isinstance(exception, SIGTERMException) and self._trained
        if not terminated or not private.ended_between_batches(trainer):
            return
        path = _last_words(trainer)
        if path is not None and trainer.world_size == 1:
            self._terminating = True
            trainer.save_checkpoint(path)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = _last_words(trainer)
        if path is not None and trainer.is_global_zero:
            path.unlink(missing_ok=True)


def _last_words(trainer: L.Trainer) -> Path | None:
    """Return the place of ``terminated.ckpt``, beside the first ModelCheckpoint's; None where nothing is to be kept."""
    folders = [] if private.is_dry_run(trainer) else [folder for _, folder in saving_here(trainer)]
    return folders[0] / LAST_WORDS if folders else None


def _paths_here(
    callback: ModelCheckpoint, others: list[ModelCheckpoint], states: dict[str, PlainValues]
) -> PlainValues:
    last = [other for other in others if other.save_last and other.dirpath == callback.dirpath]
    return paths_here(callback, states.get(callback.state_key), alone=last == [callback])


def _gradients(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in pl_module.named_parameters() if parameter.grad is not None}
    return {name: trainer.strategy.reduce(gradient, reduce_op="mean") for name, gradient in found.items()}
