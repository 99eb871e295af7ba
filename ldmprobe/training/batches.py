"""What a LightningModule of this package asks of batches: names, and in the first one of a fit, images in [−1, 1]."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L

from ldmprobe.data.images import ImageData
from ldmprobe.errors import ConfigurationError
from ldmprobe.lightning_private import datamodule_of
from ldmprobe.models.codec import IMAGES
from ldmprobe.models.pixels import check_pixels
from ldmprobe.types import Batch


def check_names(batch: object, *names: str) -> None:
    """Check that a batch is a dict with these names, and with images or what a cache has kept of them.

    Raises:
        ConfigurationError: it is none, such as (image, label); or names are missing.
    """
    if not isinstance(batch, Mapping):
        raise ConfigurationError(
            f"A batch is a {type(batch).__name__}; {_wanted(names)}: have the dataset return dicts."
        )
    missing = [name for name in names if name not in batch]
    if not any(name in batch for name in IMAGES):
        missing = ["image", *(name for name in missing if name != "image")]
    if missing:
        raise ConfigurationError(
            f"A batch with {', '.join(map(repr, batch)) or 'nothing'} lacks {', '.join(map(repr, missing))}; "
            f"{_wanted(names)}. `index` is the number of each image's row, by which it keeps its noise from one "
            "validation to the next."
        )


def _wanted(names: tuple[str, ...]) -> str:
    asked = ", ".join(map(repr, dict.fromkeys(("image", *names))))
    return f"expected a dict with {asked}, such as {{'image': images, 'index': row_numbers}}"


class FirstBatch:
    """Looks at the pixels of the first training batch of a fit. Those of an ImageData have been looked at, and those
    of later batches are not, since each look waits for the device.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._is_next = not isinstance(datamodule_of(trainer), ImageData)

    def check(self, batch: Batch) -> None:
        """Check a training batch, in the order they come in.

        Raises:
            ConfigurationError: the images are the first, and none in [−1, 1].
        """
        is_next, self._is_next = self._is_next, False
        if is_next and "image" in batch:
            check_pixels(batch["image"])
