"""The noise spectrum: all that is known by noise level above one axis, from noisy to clean.

On top an image with noise added, so that nobody needs to know what a log-SNR is; the verdict on each band; then a chart
for each headline. The page's slider over training moves the verdict, and marks the curves of its step.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from math import isfinite

import numpy as np
from PIL import Image

from ldmprobe.io.record import ProbeRecord
from ldmprobe.probing.judge import judge
from ldmprobe.probing.verdict import BandVerdict, Verdict
from ldmprobe.tracking.charts.chart import Chart
from ldmprobe.tracking.thumbnails import opened
from ldmprobe.tracking.verdict_html import CLASSES, change_in_words

_TILES, _TILE = 14, 48  # noised images along the axis, and the pixels that each has at most
_ENDS = (
    '<div class="ends"><span>← pure noise · layout, class</span><span>noise level, log-SNR · share of the bound</span>'
    "<span>fine detail · clean image →</span></div>"
)
Range = tuple[float, float]


def range_of(records: Sequence[ProbeRecord], names: Sequence[str]) -> Range | None:
    """Return the log-SNRs that curves of records reach over, and a little more; None where they have none."""
    found = [record.curves[name].log_snr for record in records for name in names if name in record.curves]
    levels = np.concatenate([np.empty(0), *found])
    levels = levels[np.isfinite(levels)]
    if not levels.size:
        return None
    margin = max(0.02 * float(np.ptp(levels)), 0.1)
    return float(levels.min()) - margin, float(levels.max()) + margin


def on_axis(chart: Chart, reach: Range) -> Chart:
    """Return a chart over the spectrum's axis, whose name stands on top."""
    return replace(chart, panels=[replace(panel, x="", x_range=reach) for panel in chart.panels])


def bands_html(judged: Sequence[ProbeRecord], reach: Range) -> str:
    """Return the verdict on each band above the axis, at each of the records' training steps; the last is shown."""
    verdicts = {record.step: judge(judged[: k + 1]) for k, record in enumerate(judged)}
    verdicts = {step: verdict for step, verdict in verdicts.items() if verdict.bands}
    if not verdicts:
        return ""
    last = max(verdicts)
    stages = "".join(
        f'<div data-stage="{step}"{" hidden" * (step != last)}>{_stage(verdict, reach)}</div>'
        for step, verdict in verdicts.items()
    )
    return f'<div class="stages">{stages}</div>'


def noised_html(images: Sequence[bytes], reach: Range) -> str:
    """Return the first of the images that is a PNG, with noise added at levels along the axis; "" if none is."""
    image = next((found for png in images[:8] if (found := opened(png)) is not None), None)
    if image is None:
        return ""
    low, high = reach
    levels = low + (np.arange(_TILES) + 0.5) * (high - low) / _TILES
    buffer = io.BytesIO()
    _noised(image, levels).save(buffer, "WEBP", quality=70, method=2)
    uri = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img class="noised" alt="a sample, from pure noise to clean" src="{uri}">'


def _noised(image: Image.Image, levels: np.ndarray) -> Image.Image:
    """Return an image at levels of log-SNR λ, side by side: √sigmoid(λ) of it, at unit variance, and √sigmoid(−λ) of
    one and the same noise.
    """
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    image.thumbnail((_TILE, _TILE))
    pixels = np.asarray(image, dtype=float)
    mean, spread = pixels.mean(), pixels.std() or 1.0
    noise = np.random.default_rng(0).standard_normal(pixels.shape)
    shares = 1 / (1 + np.exp(-levels))
    tiles = [np.sqrt(share) * (pixels - mean) / spread + np.sqrt(1 - share) * noise for share in shares]
    shown = np.clip(mean + spread * np.concatenate(tiles, 1), 0, 255)
    return Image.fromarray(shown.round().astype(np.uint8))


def _stage(verdict: Verdict, reach: Range) -> str:
    cells = "".join(_cell(band, verdict.bound, reach) for band in verdict.bands)
    lines = "".join(
        f"<li><b>{band.symbol} {escape(band.name)}</b> {escape(f'{band.state.value}: {band.evidence}')}</li>"
        for band in verdict.bands
    )
    return (
        f'<p class="bound"><strong>{verdict.bound:.1f}</strong> nats, held-out bound{change_in_words(verdict)}</p>'
        f'<div class="bands">{cells}</div>{_ENDS}<details><summary>Band by band</summary><ul>{lines}</ul></details>'
    )


def _cell(band: BandVerdict, bound: float, reach: Range) -> str:
    low, high = reach
    left, right = (np.clip((end - low) / (high - low), 0, 1) for end in (band.low, band.high))
    share = f"{band.nats / bound:.0%}<i> of the bound</i>" if isfinite(band.nats) and bound else ""
    told = escape(f"log-SNR {band.name}: {band.state.value}, {band.evidence}")
    return (
        f'<span class="{CLASSES[band.symbol]}" style="left:{left:.2%};width:{right - left:.2%}" title="{told}">'
        f"<b>{band.symbol}<i> {escape(band.name)}</i></b><em>{share}</em></span>"
    )
