"""OfRows: a conditioning whose samples have the conditions of rows that were given."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ldmprobe.io.digest import fingerprint
from ldmprobe.models.conditioning.base import Conditioning
from ldmprobe.models.denoiser import Condition
from ldmprobe.types import Batch, PlainValues


class OfRows(Conditioning):
    """Another conditioning, ready to sample, in which sample i has the condition of row i mod K.

    Args:
        conditioning: that of the model.
        batches: the K rows, with the columns that it reads.

    Attributes:
        holes: which pixels of the rows' images are filled in, (K, 1, H, W); None where nothing is.
        small: the small images of the rows, (K, C, h, w); None where nothing is enlarged.

    Raises:
        ConfigurationError: a column is not there.
    """

    def __init__(self, conditioning: Conditioning, batches: Iterable[Batch]) -> None:
        super().__init__(conditioning.dropout)
        self.conditioning, self.columns = conditioning, conditioning.columns
        rows = list(batches)
        told = [conditioning.from_batch(batch) for batch in rows]
        self._told = {name: torch.cat([each[name] for each in told]) for name in told[0]}
        self.holes = _of_all(conditioning.hidden(batch) for batch in rows)
        self.small = _of_all(conditioning.enlarged(batch) for batch in rows)
        self._columns = {
            name: [value for row in rows for value in row[name]] for name in ("label", "caption") if name in rows[0]
        }

    def as_columns(self, sample_ids: Tensor) -> Batch:
        chosen = {name: [own[i % len(own)] for i in sample_ids.tolist()] for name, own in self._columns.items()}
        return {name: torch.stack(own) if isinstance(own[0], Tensor) else own for name, own in chosen.items()}

    @property
    def tells(self) -> bool:
        """Return whether rows tell the network anything."""
        return bool(self._told)

    def from_batch(self, batch: Batch) -> Condition:
        return self.conditioning.from_batch(batch)

    def for_samples(self, sample_ids: Tensor) -> Condition:
        rows = {name: value.to(sample_ids.device) for name, value in self._told.items()}
        return {name: value[sample_ids % len(value)] for name, value in rows.items()}

    def null(self, num_samples: int, device: torch.device) -> Condition:
        return self.conditioning.null(num_samples, device)

    def without(self, device: torch.device) -> Callable[[Condition], Condition]:
        return self.conditioning.without(device)

    @property
    def knows_null(self) -> bool:
        return self.conditioning.knows_null

    @property
    def most_nats(self) -> float:
        return self.conditioning.most_nats

    @property
    def label(self) -> str:
        return self.conditioning.label

    @property
    def description(self) -> PlainValues:
        return {"rows": fingerprint(*self._told.values())}


def _of_all(found: Iterable[Tensor | None]) -> Tensor | None:
    there = [each for each in found if each is not None]
    return torch.cat(there) if there else None
