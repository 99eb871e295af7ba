"""Masked: the known part of an image, and where it ends, beside z_t: inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning.observed import Observed
from ldmprobe.models.conditioning.protocols import ConditioningData
from ldmprobe.models.conditioning.spatial import SpatialConditioning
from ldmprobe.models.corruption import Cells, MaskFamily, at_cells, check_masks, filled, random_masks
from ldmprobe.models.pixels import as_floats
from ldmprobe.types import Batch, PlainValues

HOLE = "hole"
"""The name in batches of masks that take the place of random ones."""
_PIPELINE_CHANNELS = 4  # fixed in StableDiffusionInpaintPipeline.__call__
_CHECKED = 64  # rows of training data whose masks are looked at before training


class Masked(SpatialConditioning):
    """A mask, 1 where the image is to be filled in, and the latents of the image with the hole filled by one value: in
    the order of Stable Diffusion's inpainting, whose network has the channels [z_t, mask, masked image].

    The hole is filled before anything is encoded, so that hidden pixels cannot leak. A row's mask is a function of
    (seed, row) alone.

    Args:
        families: kinds of masks, one of which is drawn for each row: "boxes", "strokes" of a brush, "halves" on one
            side of a line, "all" of the image.
        share: the least and the largest share of the image that is hidden.
        column: the name in batches of masks of the data, such as those of a `MaskColumn`, in place of random ones;
            whatever is not 0 is to be filled. Where there is none, batches with a column "hole" have their own masks.
        fill: the value of hidden pixels: 0 (gray) for Stable Diffusion, −1 (black) for latent diffusion's model.
        cells: which cells of the latents are masked: those with "any" hidden pixel; or, as Stable Diffusion was
            trained, those whose first pixel is hidden ("nearest").

    Raises:
        ConfigurationError: settings out of range, or, before training, masks that hide nothing, or all, everywhere.
    """

    def __init__(
        self,
        families: Sequence[MaskFamily] = ("boxes", "strokes", "halves"),
        share: tuple[float, float] = (0.1, 0.9),
        column: str | None = None,
        fill: float = 0.0,
        cells: Cells = "any",
        seed: int = 0,
        dropout: float = 0.0,
        num_rows: int = 64,
        present: bool = False,
    ) -> None:
        super().__init__(dropout, num_rows, present)
        check_masks("Masked", families, share)
        if cells not in get_args(Cells):
            raise ConfigurationError(f"Masked got cells {cells!r}; expected one of {', '.join(get_args(Cells))}.")
        self.families, self.share = list(families), [float(each) for each in share]
        self.column, self.fill, self.cells, self.seed = column, fill, cells, seed
        self.columns = () if column is None else (column,)

    @property
    def settings(self) -> PlainValues:
        return {name: vars(self)[name] for name in ("families", "share", "column", "fill", "cells", "seed")}

    @property
    def hole_column(self) -> str:
        return self.column or HOLE

    @property
    def column_kinds(self) -> dict[str, str]:
        return {self.hole_column: "MaskColumn"}

    def hidden(self, batch: Batch) -> Tensor:
        return self.observed(batch)["mask"]

    def observe(self, batch: Batch) -> Observed:
        images = as_floats(batch["image"])
        if self.column is not None or HOLE in batch:
            masks = (batch[self.hole_column] != 0)[:, None].byte()
        else:
            size = (images.shape[2], images.shape[3])
            masks = random_masks(self.row_numbers(batch), size, self.families, self.share, self.seed)
        masks = masks.to(images.device)
        return {"mask": masks, **self.encoded(filled(images, masks, self.fill))}

    def picture(self, observed: Observed) -> Tensor:
        latents = self.latents(observed)
        mask = at_cells(observed["mask"], (latents.shape[2], latents.shape[3]), self.cells).to(latents)
        return torch.cat([mask, latents], dim=1)

    def pictured(self, observed: Observed) -> Tensor:
        latents = self.latents(observed)
        return filled(self.codec.decode(latents), observed["mask"].to(latents.device), self.fill)

    # --- StableDiffusionInpaintPipeline ----------------------------------------------------------------------------

    beside_text = "StableDiffusionInpaintPipeline"
    call_arguments = "image=image, mask_image=mask"

    def check_exportable(self, network: nn.Module, latent_shape: tuple[int, ...]) -> None:
        if latent_shape[0] != _PIPELINE_CHANNELS or self.present or self.fill != 0 or self.cells != "nearest":
            raise ConfigurationError(
                f"Masked has fill {self.fill:g}, cells {self.cells!r}, present {self.present}, and the latents have "
                f"{latent_shape[0]} channels; a {self.beside_text} has 0, 'nearest', False and {_PIPELINE_CHANNELS}."
            )

    # --- before training -------------------------------------------------------------------------------------------

    def prepare(self, network: nn.Module, data: ConditioningData, codec: LatentCodec) -> None:
        super().prepare(network, data, codec)
        masks = torch.cat([self.observed(batch)["mask"] for batch in data.reference_batches(_CHECKED)])
        if self.column is not None and bool((masks == masks[:1, :, :1, :1]).all()):
            what = "nothing" if int(masks[0, 0, 0, 0]) == 0 else "all"
            raise ConfigurationError(
                f"The masks in {self.column!r} hide {what} of the first {len(masks)} images; expected 0 where an image "
                "is known and another number where it is to be filled in."
            )
