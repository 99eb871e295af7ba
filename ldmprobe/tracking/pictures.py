"""A record's pictures for loggers: each is drawn when the first logger asks for it, and once for all of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.chart import Chart
from ldmprobe.tracking.charts.curves import curves_chart
from ldmprobe.tracking.charts.heatmap import heatmap_chart
from ldmprobe.tracking.charts.scatter import scatter_chart
from ldmprobe.tracking.charts.static import figure, pixels
from ldmprobe.tracking.history import RunningHistory, thinned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES, _COLUMNS, _WIDTH = 8, 10, 1280  # curves of a chart; images side by side; and the pixels they may have together


class Pictures:
    """Pictures (H, W, 3) of a record, 8 bits: its headline curves, these as heatmaps over training, its scatters, and
    its images.

    Attributes:
        record: the latest of its probe.
        names: of the pictures that there are.
    """

    def __init__(self, record: ProbeRecord, history: RunningHistory) -> None:
        self.record, self._history = record, history
        headlines = [name for name in record.curves if record.metric(name).shown == "headline"]
        self._curves = {
            "curves": headlines,
            "heatmaps": [each for each in headlines if record.metric(each).has_heatmap],
        }
        self._drawn: dict[str, np.ndarray] = {}
        scatters = [name for name in record.scatters if not name.endswith("_real")]
        self.names = [*(name for name, drawn in self._curves.items() if drawn), *scatters, *record.images]

    def drawn(self, name: str) -> np.ndarray:
        """Return a picture."""
        if name not in self._drawn:
            self._drawn[name] = self._draw(name)
        return self._drawn[name]

    @cached_property
    def history(self) -> list[ProbeRecord]:
        """Scalars and curves of some earlier records and of this one; read from disk, where need be, when they are
        first drawn.
        """
        return self._history.upto(self.record)

    @property
    def curves(self) -> list[ProbeRecord]:
        """Return as many records of the history as one chart tells apart."""
        return thinned(self.history, _CURVES)

    def _draw(self, name: str) -> np.ndarray:
        if name == "curves":
            return pixels(curves_figure(self.curves, self._curves[name]))
        if name == "heatmaps":
            drawn = self._curves[name]
            charts = [heatmap_chart(self.history, each) for each in drawn]
            return pixels(figure(_side_by_side(charts, drawn, self.record), _title("Over training", self.record)))
        if name in self.record.images:
            return image_grid(self.record.images[name])
        return pixels(scatter_figure(self.record, name))


def curves_figure(records: Sequence[ProbeRecord], names: Sequence[str]) -> Figure:
    """Draw curves of records, each in a panel of its own."""
    charts = [curves_chart(records, name) for name in names]
    title = records[-1].metric(names[0]).title if len(names) == 1 else "Noise level by noise level"
    return figure(_side_by_side(charts, names, records[-1]), _title(title, records[-1]))


def scatter_figure(record: ProbeRecord, name: str) -> Figure:
    """Draw a scatter at several noise levels."""
    note = record.provenance.get("notes", {}).get(name, "")
    return figure(
        scatter_chart(record, name), "\n".join(filter(None, [_title(record.metric(name).title, record), note]))
    )


def image_grid(pngs: Sequence[bytes]) -> np.ndarray:
    """Return images side by side, reduced where they are large. Not by matplotlib, which takes ten times as long."""
    columns = min(_COLUMNS, len(pngs))
    edge = _WIDTH // columns
    tiles = []
    for png in pngs:
        image = Image.open(io.BytesIO(png)).convert("RGB")
        image.thumbnail((edge, 4 * edge))  # a column of pictures is as wide as one
        factor = max(1, edge // image.width)  # pixels as squares
        tiles.append(image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST))
    width, height = (max(tile.size[axis] for tile in tiles) for axis in (0, 1))
    rows = -(-len(tiles) // columns)
    grid = Image.new("RGB", (columns * (width + 2), rows * (height + 2)), "white")
    for i, tile in enumerate(tiles):
        grid.paste(tile, (i % columns * (width + 2), i // columns * (height + 2)))
    return np.asarray(grid)


def _side_by_side(charts: Sequence[Chart], names: Sequence[str], record: ProbeRecord) -> Chart:
    panels = [
        replace(chart.panels[0], title=record.metric(name).title) for chart, name in zip(charts, names, strict=True)
    ]
    return Chart(panels, columns=min(3, len(panels)), steps=charts[0].steps)


def _title(title: str, record: ProbeRecord) -> str:
    """Return a title that says when a record was made, unless the model was not trained here, and what moves its
    samples off the data.
    """
    when = f", training step {record.step:,}" if record.step else ""
    return "\n".join([title + when, *map(str, record.provenance.get("caveats", []))])
