"""StyleSource: another image beside z_t, to be drawn anew: style transfer, and editing by instruction."""

from __future__ import annotations

from torch import Tensor

from ldmprobe.models.conditioning.observed import Observed
from ldmprobe.models.conditioning.spatial import SpatialConditioning
from ldmprobe.types import Batch, PlainValues


class StyleSource(SpatialConditioning):
    """The latents of a source image, such as the same scene in another style (Brooks et al., 2023, arXiv:2211.09800).
    What is to become of it is told by a conditioning beside it, in `Conditions`.

    Args:
        column: the name in batches of the source images, such as those of a further `ImageColumn`.
    """

    def __init__(self, column: str = "source", dropout: float = 0.05, num_rows: int = 64, present: bool = True) -> None:
        super().__init__(dropout, num_rows, present)
        self.column, self.columns = column, (column,)

    @property
    def settings(self) -> PlainValues:
        return {"column": self.column}

    @property
    def column_kinds(self) -> dict[str, str]:
        return {self.column: "ImageColumn"}

    def observe(self, batch: Batch) -> Observed:
        return self.encoded(batch[self.column])

    def picture(self, observed: Observed) -> Tensor:
        return self.latents(observed)

    def pictured(self, observed: Observed) -> Tensor:
        return self.codec.decode(self.latents(observed))
