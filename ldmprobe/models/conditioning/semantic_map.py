"""SemanticMap: the class of each pixel, as one-hot channels beside z_t."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning.observed import Observed, palette
from ldmprobe.models.conditioning.protocols import ConditioningData
from ldmprobe.models.conditioning.spatial import SpatialConditioning
from ldmprobe.types import Batch, PlainValues

_CHECKED = 256  # rows of training data that are looked at before training


class SemanticMap(SpatialConditioning):
    """Maps of K classes as K channels of 0 and 1 at the size of the latents, each cell of the class at its middle:
    never as colors, between which there are others (Rombach et al., 2022, arXiv:2112.10752, section 4.3.2).

    Args:
        num_classes: K, the ground among them: maps have 0 … K − 1.
        column: the name in batches of the maps, such as those of a `MaskColumn`.

    Raises:
        ConfigurationError: fewer than two classes, or, before training, a map with a class K or above.
    """

    def __init__(
        self, num_classes: int, column: str = "map", dropout: float = 0.1, num_rows: int = 64, present: bool = True
    ) -> None:
        super().__init__(dropout, num_rows, present)
        check_numbers("SemanticMap", 2, num_classes=num_classes)
        self.num_classes, self.column, self.columns = num_classes, column, (column,)

    @property
    def settings(self) -> PlainValues:
        return {"num_classes": self.num_classes, "column": self.column}

    @property
    def column_kinds(self) -> dict[str, str]:
        return {self.column: "MaskColumn"}

    def observe(self, batch: Batch) -> Observed:
        maps: Tensor = batch[self.column]
        if int(maps.min()) < 0 or int(maps.max()) >= self.num_classes:
            wrong = int(((maps < 0) | (maps >= self.num_classes)).flatten(1).any(1).nonzero()[0])
            row = f"Row {int(batch['index'][wrong])}" if "index" in batch else f"Number {wrong} of a batch"
            raise ConfigurationError(
                f"{row} has class {int(maps[wrong].max())} in its {self.column}, and SemanticMap num_classes "
                f"{self.num_classes}, classes 0 to {self.num_classes - 1}; set it to one more than the largest."
            )
        return {"map": F.interpolate(maps[:, None].float(), size=self.latent_size, mode="nearest-exact").to(maps.dtype)}

    def picture(self, observed: Observed) -> Tensor:
        one_hot = F.one_hot(observed["map"][:, 0].long(), self.num_classes)
        return one_hot.movedim(-1, 1).to(torch.float32)

    def pictured(self, observed: Observed) -> Tensor:
        colors = torch.cat([torch.full((1, 3), 0.9), palette(self.num_classes - 1)])  # the ground is light gray
        return self.resized(colors[observed["map"][:, 0].long().cpu()].movedim(-1, 1))

    def prepare(self, network: nn.Module, data: ConditioningData, codec: LatentCodec) -> None:
        super().prepare(network, data, codec)
        for batch in data.reference_batches(_CHECKED):
            self.observed(batch)
