"""How long a training step takes, for the benchmarks of training."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L

from ldmprobe import ImageData, LatentDiffusion
from study.training import bare_trainer


def step_seconds(
    model: LatentDiffusion, data: ImageData, warm_up: int, steps: int, clock: Callable[[], float]
) -> float:
    """Return the seconds by ``clock`` of one of ``steps`` training steps in a bare Trainer, after ``warm_up`` others."""

    class Clock(L.Callback):
        began = ended = 0.0

        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == warm_up:
                self.began = clock()

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            self.ended = clock()

    timed = Clock()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as run_dir:
        warnings.simplefilter("ignore")
        trainer = bare_trainer(warm_up + steps, timed, gradient_clip_val=1.0, default_root_dir=run_dir)
        trainer.fit(model, data)
    return (timed.ended - timed.began) / steps
