"""ExactResume: what Lightning leaves out of a checkpoint, and a last checkpoint when the process is told to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ldmprobe.callbacks.probe_callback import run_directory
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.callbacks.same_optimization import check_same_optimization, check_schedules_last, optimization
from ldmprobe.data.images import ImageData
from ldmprobe.io.store import RecordStore
from ldmprobe.training.checkpoint.paths import paths_here

LAST_WORDS = "terminated.ckpt"
_KEY = "ldmprobe.ExactResume"


class ExactResume(L.Callback):
    """A run that goes on from a checkpoint does what it would have done had it not been stopped, curves included. ``ldmprobe fit``
    always has it; for a Trainer of your own it is ``callbacks=[..., ExactResume()]``.

    Beside what Lightning saves, a checkpoint then holds

    - the gradients, if it falls between batches whose gradients are accumulated (their mean over the ranks);
    - the row of metrics that is logged only after it;
    - that a validation is due after its batch and has not run;
    - the classes of optimizers and learning-rate schedulers, and the number of processes.

    With other optimizers or schedulers the run is refused, and so is one that outlasts its OneCycleLR; another number of
    processes is told.

    Rows that loggers still hold are written before it, so that none it counts on is lost with the process. Records of later steps
    than the checkpoint's are set aside when the run goes on, and taken anew. Where the run directory has been renamed or copied, a
    ModelCheckpoint goes on with the files that came with it.

    On SIGTERM, as from a scheduler that needs the machine, the batch is finished and ``terminated.ckpt`` saved beside the other
    checkpoints, until the run has ended. Not when the signal breaks off a probe, and not with several processes, whose ranks hear of
    it at different times: the run then goes on from the checkpoint before, as exactly.
    """

    def __init__(self) -> None:
        self._extra: dict[str, Any] = {}
        self._schedules: list[dict[str, Any]] = []  # of the checkpoint
        self._trained = self._terminating = False

    # --- into the checkpoint ---------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            logger.save()
        loop = checkpoint["loops"]["fit_loop"]
        batches, state = loop["epoch_loop.batch_progress"], loop["epoch_loop.state_dict"]
        accumulating = _accumulating(trainer)
        extra: dict[str, Any] = {"optimization": optimization(trainer)}
        if accumulating:
            extra["gradients"] = _gradients(trainer, pl_module)
        if _in_batch_end(batches):
            if not accumulating and _row_due(trainer, state["_batches_that_stepped"]):
                extra["row"] = {"step": state["_batches_that_stepped"], "metrics": _row(trainer)}
            if _validation_due(trainer, batches):
                _count_completed(batches, 1)
                extra["validating"] = True
        elif self._terminating and trainer.validating:
            extra["validating"] = True
        elif self._terminating:  # as in the hook in which checkpoints are saved
            _count_completed(batches, -1)
            state["_batches_that_stepped"] -= not accumulating
        if "validating" in extra:
            _begin_validation(loop["epoch_loop.val_loop.batch_progress"])
        checkpoint[_KEY] = extra

    # --- out of the checkpoint -------------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if isinstance(getattr(trainer, "datamodule", None), ImageData) and ImageData.__qualname__ not in checkpoint:
            rank_zero_warn(
                "The checkpoint does not say what data it was trained on: it is of an earlier version, which held out other "
                "rows of data without a split of their own, so that held-out numbers would flatter it."
            )
        self._extra, self._schedules = checkpoint.get(_KEY, {}), checkpoint.get("lr_schedulers", [])
        callbacks = [callback for callback in trainer.checkpoint_callbacks if _saves_here(callback)]
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
                f"The checkpoint was trained by {before} process(es) and goes on with {now}: an optimizer step now takes "
                f"{now / before:g} times as many images, and in another order, unless `batch_size` makes up for it."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        extra, self._extra, self._trained = self._extra, {}, False
        if trainer.is_global_zero:
            RecordStore(run_directory(trainer)).set_aside(after=trainer.global_step)
        parameters = dict(pl_module.named_parameters())
        for name, gradient in extra.get("gradients", {}).items():
            parameters[name].grad = gradient.to(parameters[name])
        if row := extra.get("row"):
            for logger in trainer.loggers:
                logger.log_metrics(dict(row["metrics"]), step=row["step"])
        if "validating" in extra:  # that it must validate, Lightning has seen; its counts go on from before
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset()

    # --- told to end -----------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._trained = True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        progress = trainer.fit_loop.state_dict()
        epochs, batches = progress["epoch_progress"]["current"], progress["epoch_loop.batch_progress"]
        epoch_ended = epochs["processed"] == epochs["ready"]
        if not isinstance(exception, SIGTERMException) or not self._trained or _in_batch_end(batches) or epoch_ended:
            return
        folder = _folder(trainer)
        if folder is not None and trainer.world_size == 1 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._terminating = True
            trainer.save_checkpoint(folder / LAST_WORDS)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = None if trainer.fast_dev_run else _folder(trainer)  # type: ignore[attr-defined]
        if folder is not None and trainer.is_global_zero:
            (folder / LAST_WORDS).unlink(missing_ok=True)


def _folder(trainer: L.Trainer) -> Path | None:
    """Where the first ModelCheckpoint saves, if it does so in a local folder."""
    return next(
        (Path(str(callback.dirpath)) for callback in trainer.checkpoint_callbacks if _saves_here(callback)), None
    )


def _saves_here(callback: L.Callback) -> TypeGuard[ModelCheckpoint]:
    """Whether it saves to a local folder."""
    return isinstance(callback, ModelCheckpoint) and bool(callback.dirpath) and "://" not in str(callback.dirpath)


def _paths_here(
    callback: ModelCheckpoint, others: list[ModelCheckpoint], states: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    last = [other for other in others if other.save_last and other.dirpath == callback.dirpath]
    return paths_here(callback, states.get(callback.state_key), alone=last == [callback])


def _accumulating(trainer: L.Trainer) -> bool:
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return ready % trainer.accumulate_grad_batches != 0 and ready != trainer.num_training_batches


def _gradients(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in pl_module.named_parameters() if parameter.grad is not None}
    return {name: trainer.strategy.reduce(gradient, reduce_op="mean") for name, gradient in found.items()}


def _row_due(trainer: L.Trainer, step: int) -> bool:
    every_n_steps: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every_n_steps > 0 and (step + 1) % every_n_steps == 0


def _row(trainer: L.Trainer) -> dict[str, float]:
    metrics = trainer._logger_connector.metrics["log"]
    return {"epoch": trainer.current_epoch, **{name: float(value) for name, value in metrics.items()}}


def _validation_due(trainer: L.Trainer, batches: dict[str, Any]) -> bool:
    """Whether Lightning validates after this batch; known for intervals in batches, of the whole training or of an epoch."""
    interval, every_n_epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if not trainer.enable_validation or not isinstance(interval, int):
        return False
    if every_n_epochs is None:
        return batches["total"]["processed"] % interval == 0
    return (trainer.current_epoch + 1) % every_n_epochs == 0 and batches["current"]["processed"] % interval == 0


def _in_batch_end(batches: dict[str, Any]) -> bool:
    """Within ``on_train_batch_end``, where ModelCheckpoint saves: the batch is processed, and not yet completed."""
    return batches["total"]["completed"] == batches["total"]["processed"] - 1


def _count_completed(batches: dict[str, Any], number: int) -> None:
    for scope in ("total", "current"):
        batches[scope]["completed"] += number


def _begin_validation(batches: dict[str, Any]) -> None:
    """To Lightning, one that was saved in its first batch: it goes back and validates before it trains."""
    batches["total"].update(ready=1, started=1, processed=0, completed=0)
    batches["current"].update(ready=0, started=0, processed=0, completed=0)
    batches["is_last_batch"] = False
