"""HeldOutRows: held-out rows for the samples of probes, for conditions that a sample's number alone cannot give."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.full_precision import Move
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.digest import fingerprint
from ldmprobe.models.conditioning.protocols import ConditioningData
from ldmprobe.types import Batch, StateDict


class HeldOutRows(nn.Module):
    """Columns of K distinct held-out rows; the sample numbered i has row i mod K, for the whole run: they are buffers,
    so that every checkpoint has them. A finetune, and a probe of a dataset, `forget` them and have rows of their data.

    Args:
        columns: the names in batches that are kept; tensors of one shape. None are named where `choose` is told what to
            keep.
        num_rows: K, or as many rows as are held out.

    Raises:
        ConfigurationError: fewer than one row.
    """

    def __init__(self, columns: Sequence[str] = (), num_rows: int = 64) -> None:
        super().__init__()
        check_numbers("HeldOutRows", 1, num_rows=num_rows)
        self.columns, self.num_rows = tuple(columns), num_rows
        for name in self.columns:
            self.register_buffer(name, None)

    def choose(self, data: ConditioningData, keep: Callable[[Batch], Batch] | None = None) -> None:
        """Take the first K held-out rows of `data`, in its fixed order, unless there are rows already.

        Args:
            keep: returns what is kept of a batch; default: the columns.

        Raises:
            ConfigurationError: a column is no tensor.
        """
        if any(self._buffers[name] is not None for name in self.columns):
            return
        batches = list(data.reference_batches(self.num_rows, held_out=True))
        if keep is not None:
            batches = [keep(batch) for batch in batches]
            self.columns = tuple(batches[0])
        for name in self.columns:
            if not all(isinstance(batch[name], Tensor) for batch in batches):
                raise ConfigurationError(
                    f"The column {name!r} has no tensors of one shape, so that its rows cannot be kept for samples."
                )
            self.register_buffer(name, torch.cat([batch[name] for batch in batches]))

    def forget(self) -> None:
        """Have no rows, until others are chosen."""
        for name in self.columns:
            self.register_buffer(name, None)

    @property
    def chosen(self) -> bool:
        """Return whether there are rows, with something in them."""
        return bool(self.columns) and all(self._buffers[name] is not None for name in self.columns)

    def batch(self, sample_ids: Tensor) -> dict[str, Tensor]:
        """Return the rows of these samples as a batch.

        Raises:
            ConfigurationError: no rows have been chosen.
        """
        chosen: dict[str, Tensor] = {}
        for name in self.columns:
            kept = self._buffers[name]
            if kept is None:
                raise ConfigurationError(
                    f"There are no held-out rows with {name!r} yet; they are chosen before training."
                )
            chosen[name] = kept[sample_ids.to(kept.device) % len(kept)]
        return chosen

    @property
    def description(self) -> str:
        """A digest of the rows, by which records of the same samples are known."""
        return fingerprint(*(kept for name in self.columns if (kept := self._buffers[name]) is not None))

    def _apply(self, fn: Move, recurse: bool = True) -> HeldOutRows:
        """Move with the module that it is part of, but keep the dtype of the data."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), recurse)

    def _load_from_state_dict(self, state_dict: StateDict, prefix: str, *args: object) -> None:
        """Take the rows of a checkpoint, however many it has."""
        saved_names = [name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]
        self.columns = tuple(dict.fromkeys([*self.columns, *saved_names]))
        for name in self.columns:
            saved = state_dict.get(prefix + name)
            if saved is not None:
                self.register_buffer(name, torch.empty_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *args)
