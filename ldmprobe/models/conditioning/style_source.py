"""StyleSource: another image beside z_t, to be drawn anew: style transfer, and editing by instruction."""

from __future__ import annotations

from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.conditioning.observed import Observed
from ldmprobe.models.conditioning.spatial import SpatialConditioning
from ldmprobe.types import Batch, PlainValues


class StyleSource(SpatialConditioning):
    """The latents of a source image, such as the same scene in another style (Brooks et al., 2023, arXiv:2211.09800).
    What is to become of it is told by a conditioning beside it, in `Conditions`.

    Args:
        column: the name in batches of the source images, such as those of a further `ImageColumn`.
        scaled: whether its latents have the scale of z_t; those of InstructPix2Pix are as the encoder gives them.
    """

    def __init__(
        self,
        column: str = "source",
        dropout: float = 0.05,
        num_rows: int = 64,
        present: bool = True,
        scaled: bool = True,
    ) -> None:
        super().__init__(dropout, num_rows, present)
        self.column, self.columns, self.scaled = column, (column,), scaled

    @property
    def settings(self) -> PlainValues:
        return {"column": self.column, "scaled": self.scaled}

    @property
    def column_kinds(self) -> dict[str, str]:
        return {self.column: "ImageColumn"}

    def observe(self, batch: Batch) -> Observed:
        return self.encoded(batch[self.column])

    def picture(self, observed: Observed) -> Tensor:
        latents = self.latents(observed)
        return latents if self.scaled else latents / self.codec.scale + self.codec.shift

    def pictured(self, observed: Observed) -> Tensor:
        return self.codec.decode(self.latents(observed))

    # --- StableDiffusionInstructPix2PixPipeline --------------------------------------------------------------------

    beside_text = "StableDiffusionInstructPix2PixPipeline"
    call_arguments = "image=image"

    def check_exportable(self, network: nn.Module, latent_shape: tuple[int, ...]) -> None:
        if self.present or self.scaled:
            raise ConfigurationError(
                f"StyleSource has present {self.present}, scaled {self.scaled}; a {self.beside_text} has False and "
                "False."
            )
        if self.codec.scale.ndim or bool(self.codec.shift != 0):
            raise ConfigurationError(
                "The latents are shifted, or scaled by channel, which goes into the autoencoder's weights; a "
                f"{self.beside_text} takes the source's latents without either. Train with a number as the codec's "
                "`scale`."
            )
