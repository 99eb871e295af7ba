"""A record's pictures for loggers: each is drawn when the first logger asks for it, and once for all of them."""

from __future__ import annotations

import io
from functools import cached_property

import numpy as np
from PIL import Image

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking import figures
from ldmprobe.tracking.history import RunningHistory, thinned

_CURVES, _COLUMNS, _WIDTH = 8, 10, 1280  # curves of a chart; images side by side; and the pixels they may have together


class Pictures:
    """Pictures (H, W, 3) of a record, 8 bits.

    Attributes:
        record: the latest of its probe.
    """

    def __init__(self, record: ProbeRecord, history: RunningHistory) -> None:
        self.record, self._history = record, history

    @cached_property
    def history(self) -> list[ProbeRecord]:
        """Scalars and curves of some earlier records and of this one; read from disk, where need be, when they are first drawn."""
        return self._history.upto(self.record)

    @property
    def curves(self) -> list[ProbeRecord]:
        """As many of them as one chart tells apart."""
        return thinned(self.history, _CURVES)

    @cached_property
    def pca(self) -> np.ndarray:
        return figures.picture(figures.pca_figure(self.record))

    @cached_property
    def step_kl(self) -> np.ndarray:
        return figures.picture(figures.kl_figure(self.curves))

    @cached_property
    def step_kl_heatmap(self) -> np.ndarray:
        return figures.picture(figures.heatmap_figure(self.history))

    @cached_property
    def samples(self) -> np.ndarray:
        """A grid of the decoded samples, reduced where they are large. Not by matplotlib, which takes ten times as long."""
        shown = self.record.images["samples"]
        columns = min(_COLUMNS, len(shown))
        edge = _WIDTH // columns
        tiles = []
        for png in shown:
            image = Image.open(io.BytesIO(png)).convert("RGB")
            image.thumbnail((edge, edge))
            tiles.append(image if max(image.size) > edge // 2 else _enlarged(image, edge // max(image.size)))
        width, height = (max(tile.size[axis] for tile in tiles) for axis in (0, 1))
        rows = -(-len(tiles) // columns)
        grid = Image.new("RGB", (columns * (width + 2), rows * (height + 2)), "white")
        for i, tile in enumerate(tiles):
            grid.paste(tile, (i % columns * (width + 2), i // columns * (height + 2)))
        return np.asarray(grid)


def _enlarged(image: Image.Image, factor: int) -> Image.Image:
    """Pixels as squares."""
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
