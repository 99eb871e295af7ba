"""Sketch: lines beside z_t, the edges of an image or the outlines of a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.conditioning.observed import Observed
from ldmprobe.models.conditioning.spatial import SpatialConditioning
from ldmprobe.models.corruption import at_cells, edges, outlines, sketched
from ldmprobe.models.pixels import as_floats
from ldmprobe.types import Batch, PlainValues


class Sketch(SpatialConditioning):
    """One channel of lines, 1 on a line: where the gray image changes most, or the outlines of a column of masks.

    Args:
        column: the name in batches of masks whose outlines are drawn; default: the edges of the image.
        quantile: the share of pixels that are no edge.
        gaps: the share of each sketch that is left out, at random.
        thickness: lines are up to so many pixels thick, each row's at random.
        seed: of what is drawn for each row.

    Raises:
        ConfigurationError: settings out of range.
    """

    def __init__(
        self,
        column: str | None = None,
        quantile: float = 0.85,
        gaps: float = 0.0,
        thickness: int = 1,
        seed: int = 0,
        dropout: float = 0.1,
        num_rows: int = 64,
        present: bool = True,
    ) -> None:
        super().__init__(dropout, num_rows, present)
        if not 0 < quantile < 1 or not 0 <= gaps < 1 or thickness < 1:
            raise ConfigurationError(
                f"Sketch got quantile {quantile}, gaps {gaps}, thickness {thickness}; expected a quantile in (0, 1), "
                "gaps in [0, 1), a thickness of at least 1."
            )
        self.column, self.quantile, self.gaps, self.thickness, self.seed = column, quantile, gaps, thickness, seed
        self.columns = () if column is None else (column,)

    @property
    def settings(self) -> PlainValues:
        return {name: vars(self)[name] for name in ("column", "quantile", "gaps", "thickness", "seed")}

    @property
    def column_kinds(self) -> dict[str, str]:
        return {} if self.column is None else {self.column: "MaskColumn"}

    def observe(self, batch: Batch) -> Observed:
        lines = edges(as_floats(batch["image"]), self.quantile) if self.column is None else outlines(batch[self.column])
        if self.gaps or self.thickness > 1:
            lines = sketched(lines, self.row_numbers(batch), self.seed, self.gaps, self.thickness)
        return {"sketch": lines}

    def picture(self, observed: Observed) -> Tensor:
        return at_cells(observed["sketch"], self.latent_size)

    def pictured(self, observed: Observed) -> Tensor:
        return 1 - 2 * observed["sketch"].to(torch.float32)
