"""The interface of a measure of reconstructions: it sees a batch at a time and keeps sums, not images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ldmprobe.io.metric import Metric
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.probing.analyses import Findings
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.reconstruction.originals import Originals
from ldmprobe.types import Component


@dataclass(frozen=True)
class Reconstructed:
    """Some held-out images with what the autoencoder makes of them, on its device.

    Attributes:
        image_ids: their numbers among all held-out images, (n,).
        images: (n, C, H, W).
        latents: (n, c, h, w) without scale, before quantization; a posterior's mode.
        reconstructions: (n, C, H, W), clamped to the range of the data.
        posterior: of the images, or None where the autoencoder has none.
    """

    image_ids: Tensor
    images: Tensor
    latents: Tensor
    reconstructions: Tensor
    posterior: Component | None


class Measure(ABC):
    """Begins with the autoencoder, is shown some batches, and finishes with findings.

    Under several ranks each is shown its share of the images, perhaps none; ``finish`` is called on all of them, in the
    same order, so that it may sum over them.

    Attributes:
        metrics: what its scalars and curves mean.
    """

    metrics: ClassVar[tuple[Metric, ...]]

    @classmethod
    def applies(cls, model: AutoencoderModel, originals: Originals) -> bool:
        """Return whether there is anything to measure."""
        return True

    def __init__(self, model: AutoencoderModel, originals: Originals) -> None:
        self.model, self.originals = model, originals

    @abstractmethod
    def update(self, batch: Reconstructed) -> None: ...

    @abstractmethod
    def finish(self, ranks: Ranks) -> Findings: ...


class PerImage(Measure):
    """A row of numbers per image, () by default, of the first ``num_images``, all by default; the finding is their
    mean.
    """

    row_shape: tuple[int, ...] = ()

    def __init__(self, model: AutoencoderModel, originals: Originals) -> None:
        super().__init__(model, originals)
        self.num_images = originals.num_images
        self._ids = [torch.empty(0, dtype=torch.long)]
        self._rows = [torch.empty(0, *self.row_shape, dtype=torch.float64, device=model.device)]

    def keep(self, batch: Reconstructed, rows: Tensor) -> None:
        """Keep a row for each image of a batch, (n, …)."""
        kept = batch.image_ids < self.num_images
        self._ids.append(batch.image_ids[kept])
        self._rows.append(rows[kept.to(rows.device)].double())

    def gather(self, ranks: Ranks) -> Tensor:
        """Return the rows of all images, (N, …), float64 on the CPU."""
        return ranks.gather_rows(torch.cat(self._rows), torch.cat(self._ids), self.num_images)

    def finish(self, ranks: Ranks) -> Findings:
        return Findings({self.metrics[0].name: float(self.gather(ranks).mean())})
