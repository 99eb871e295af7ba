"""TrainingModule: what the LightningModules of this package have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import lightning as L
import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from ldmprobe.data.images import ImageData
from ldmprobe.errors import ConfigurationError
from ldmprobe.lightning_private import batches_begun, datamodule_of
from ldmprobe.models.codec import IMAGES
from ldmprobe.models.pixels import check_pixels
from ldmprobe.training.checkpoint.spec import check_same_model, check_same_state
from ldmprobe.training.ema import EMA
from ldmprobe.training.sharding import check_not_sharded
from ldmprobe.types import Batch, PlainValues, StateDict

_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # in which weights are in float32


class TrainingModule(L.LightningModule, ABC):
    """Trains one network and its moving average, if there is one, on batches that are dicts. Batch k draws from
    (seed, k, rank), so that a resumed run goes on identically. Checkpoints say what model they hold, and those of
    another are refused.

    Attributes:
        batch_names: what a training batch has besides images.
        ema: the average, moved after every optimizer step.
        seed: of all draws.

    Raises:
        ConfigurationError: before training: the checkpoint is of another model; in it: a batch lacks names, or the
            first images of a fit are none in [−1, 1].
    """

    batch_names: tuple[str, ...] = ()
    ema: EMA | None
    seed: int

    @property
    @abstractmethod
    def _live(self) -> nn.Module:
        """The network whose parameters the optimizer moves."""

    @property
    def _probed(self) -> tuple[nn.Module, str]:
        """The network that probes look at, the average if there is one, and which weights it has."""
        return (self._live, "raw") if self.ema is None else (self.ema.network, "ema")

    @abstractmethod
    def model_spec(self) -> PlainValues:
        """Return what a checkpoint says of the model."""

    def check_whole_in_float32(self) -> None:
        """Raise ConfigurationError where the Trainer's strategy shards parameters or its precision takes them out of
        float32.
        """
        name = type(self).__name__
        check_not_sharded(self.trainer.strategy, name)
        if self.trainer.precision not in _PRECISIONS:
            raise ConfigurationError(
                f"{name} got trainer.precision {self.trainer.precision}; its weights and losses are in float32: write "
                f"one of {', '.join(_PRECISIONS)}."
            )

    def on_fit_start(self) -> None:
        # An ImageData has looked at its own; later batches are not looked at, since each look waits for the device.
        self._looks = not isinstance(datamodule_of(self.trainer), ImageData)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        check_names(batch, *self.batch_names)
        looks, self._looks = self._looks, False
        if looks:
            self.look_at(batch)
        torch.manual_seed(self._seed_of_batch(self.global_rank))

    def look_at(self, batch: Batch) -> None:
        """Raise ConfigurationError if values in the first batch of a fit would be taken for others."""
        if "image" in batch:
            check_pixels(batch["image"])

    def _seed_of_batch(self, *of: int) -> int:
        return int(np.random.SeedSequence((self.seed, batches_begun(self.trainer), *of)).generate_state(1)[0])

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], object] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._after_step()

    def _after_step(self) -> None:
        if self.ema is not None:
            self.ema.update(self._live)

    def gathered(self, tensor: Tensor) -> Tensor:
        """Return the samples (N, …) of all ranks, one rank's after another's; collective."""
        if self.trainer.world_size == 1:
            return tensor
        joined = self.all_gather(tensor)
        assert isinstance(joined, Tensor)
        return joined.flatten(0, 1)

    def on_save_checkpoint(self, checkpoint: StateDict) -> None:
        checkpoint["ldmprobe"] = self.model_spec()

    def on_load_checkpoint(self, checkpoint: StateDict) -> None:
        check_same_model(checkpoint, self.model_spec())
        check_same_state(checkpoint, self)


def check_names(batch: object, *names: str) -> None:
    """Check that a batch is a dict with these names, and with images or what a cache has kept of them.

    Raises:
        ConfigurationError: it is none, such as (image, label); or names are missing.
    """
    asked = ", ".join(map(repr, dict.fromkeys(("image", *names))))
    wanted = f"expected a dict with {asked}, such as {{'image': images, 'index': row_numbers}}"
    if not isinstance(batch, Mapping):
        raise ConfigurationError(f"A batch is a {type(batch).__name__}; {wanted}: have the dataset return dicts.")
    missing = [name for name in names if name not in batch]
    if not any(name in batch for name in IMAGES):
        missing = ["image", *(name for name in missing if name != "image")]
    if missing:
        raise ConfigurationError(
            f"A batch with {', '.join(map(repr, batch)) or 'nothing'} lacks {', '.join(map(repr, missing))}; {wanted}. "
            "`index` is the number of each image's row, by which it keeps its noise from one validation to the next."
        )
