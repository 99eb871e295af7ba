"""Static figures (matplotlib), each a function of records: for W&B, TensorBoard and print."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ldmprobe.io.record import ProbeRecord, Scatter
from ldmprobe.tracking.style import ACCENT, FORWARD, IDEAL, REAL, STEP_COLOURS, class_colour, step_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pca_figure(record: ProbeRecord) -> Figure:
    """PCA scatters of the latents at several noise levels, real latents at the same level in grey behind them."""
    scatters, real = record.scatters["pca"], record.scatters.get("pca_real")
    columns = min(3, len(scatters))
    rows = -(-len(scatters) // columns)
    # Laid out by hand and with three ticks an axis: a layout engine and ticks take most of the time of a picture that every probe draws.
    width, height = 3.1 * columns + 0.3, 2.9 * rows + 0.8
    figure, axes = _subplots(rows, columns, (width, height), by_hand=True)
    figure.subplots_adjust(0.85 / width, 0.65 / height, 1 - 0.15 / width, 1 - 0.8 / height, wspace=0.22, hspace=0.3)
    labels = record.provenance.get("sample_labels")
    names = level_names(scatters)
    for i, axis in enumerate(axes.flat):
        if i >= len(scatters):
            axis.axis("off")
            continue
        scatter = scatters[i]
        cloud = real[i].xy if real else scatter.xy
        if real:
            axis.scatter(*cloud.T, s=5, color=REAL, alpha=0.6, linewidths=0, label="real latents, noised to this level")
        colours = [class_colour(label) for label in labels] if labels else ACCENT
        axis.scatter(*scatter.xy.T, s=9, c=colours, alpha=0.9, linewidths=0, label="samples")
        axis.set_title(names[i], fontsize=10, y=1.0)
        everything = np.concatenate([cloud, scatter.xy])
        limit = 1.08 * np.nanmax(np.abs(everything)) if np.isfinite(everything).any() else 1.0
        step = float(f"{0.7 * limit:.1g}")
        axis.set(
            xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=(-step, 0, step), yticks=(-step, 0, step)
        )
        axis.tick_params(labelsize=8)
    share = [record.scalars.get(f"pca_explained_{k}", float("nan")) for k in (1, 2)]
    what = record.provenance.get("pca_basis", "real latents")
    figure.supxlabel(f"PC 1 ({share[0]:.0%} of the variance of {what})", fontsize=9)
    figure.supylabel(f"PC 2 ({share[1]:.0%})", fontsize=9)
    figure.suptitle(f"Latents during DDIM sampling{_at(record)}{_guided(record)}", fontsize=11)
    if real:
        note = "grey: real latents noised to the same level"
        figure.text(
            0.995,
            0.005,
            note + (", colour: class" if labels else ""),
            ha="right",
            va="bottom",
            fontsize=8,
            color="#555",
        )
    return figure


def kl_figure(records: Sequence[ProbeRecord], metric: str = "step_kl") -> Figure:
    """KL of the latents before and after each denoiser pass, one curve per record, the ideal beside them."""
    figure, axes = _subplots(1, 1, (6.4, 4.0))
    axis = axes[0, 0]
    for i, record in enumerate(records):
        curve = record.curves[metric]
        colour = step_colour(i / max(len(records) - 1, 1)) if len(records) > 1 else ACCENT
        label = f"training step {record.step:,}" if i in (0, len(records) - 1) else None
        label = "this model" if len(records) == 1 else label
        axis.plot(curve.timestep, _positive(curve.value), color=colour, lw=1.4, label=label)
        if i == len(records) - 1 and curve.lower is not None and curve.upper is not None:
            axis.fill_between(
                curve.timestep, _positive(curve.lower), _positive(curve.upper), color=colour, alpha=0.2, lw=0
            )
    for name, colour, style, label in (
        ("step_kl_ideal", IDEAL, "--", "ideal (perfect denoiser)"),
        ("step_kl_forward", FORWARD, ":", "forward process"),
    ):
        if name in records[-1].curves:
            curve = records[-1].curves[name]
            axis.plot(curve.timestep, _positive(curve.value), color=colour, ls=style, lw=1.6, label=label)
    axis.set(
        yscale="log", xlabel="timestep (sampling runs left to right)", ylabel="KL before ‖ after [nats per dimension]"
    )
    axis.invert_xaxis()
    axis.legend(frameon=False, fontsize=8)
    axis.set_title(f"Change of the latents' distribution per denoiser pass{_guided(records[-1])}", fontsize=11)
    return figure


def heatmap_figure(records: Sequence[ProbeRecord], metric: str = "step_kl", log: bool = True) -> Figure:
    """A metric over training step (across) and timestep (up): how each noise level develops."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    figure, axes = _subplots(1, 1, (6.4, 4.0))
    axis = axes[0, 0]
    values = np.stack([record.curves[metric].value for record in records], axis=1)
    timestep = records[-1].curves[metric].timestep
    positive = values[np.isfinite(values) & (values > 0)]
    norm = (
        LogNorm(positive.min(), positive.max()) if log and positive.size and positive.min() < positive.max() else None
    )
    image = axis.pcolormesh(
        np.arange(len(records) + 1),
        np.arange(len(timestep) + 1),
        np.where(values > 0, values, np.nan) if norm else values,
        norm=norm,
        cmap=LinearSegmentedColormap.from_list("steps", STEP_COLOURS),
    )
    ticks = np.unique(np.linspace(0, len(records) - 1, min(6, len(records))).round().astype(int))
    axis.set_xticks(ticks + 0.5, [f"{records[i].step:,}" for i in ticks])
    rows = np.unique(np.linspace(0, len(timestep) - 1, 6).round().astype(int))
    axis.set_yticks(rows + 0.5, [str(timestep[i]) for i in rows])
    axis.set(xlabel="training step", ylabel="timestep (sampling runs up)")
    axis.set_title(f"{metric} over training", fontsize=11)
    figure.colorbar(image, ax=axis, label="nats per dimension" if "kl" in metric else metric)
    return figure


def skill_figure(records: Sequence[ProbeRecord]) -> Figure:
    """Denoising skill by log-SNR, a curve per record; far below 0 it is cut off."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.axhline(0, color=IDEAL, ls="--", lw=1.6, label="best linear denoiser")
    for i, record in enumerate(records):
        curve, last = record.curves["denoising_skill"], i == len(records) - 1
        colour = step_colour(i / (len(records) - 1)) if len(records) > 1 else ACCENT
        axis.plot(
            curve.log_snr,
            curve.value,
            color=colour,
            lw=1.4,
            label=f"training step {record.step:,}" if last or i == 0 else None,
        )
    lowest = np.nanmin(np.append(records[-1].curves["denoising_skill"].value, 0))
    axis.set(xlabel="log-SNR", ylabel="skill: 1 − MSE ÷ linear optimum", ylim=(max(min(1.15 * lowest, -0.6), -4), 1.02))
    axis.legend(frameon=False, fontsize=8)
    axis.set_title("Denoising skill on held-out data", fontsize=11)
    return figure


def samples_figure(record: ProbeRecord, columns: int = 10) -> Figure:
    """The probe's decoded samples as a grid."""
    from PIL import Image

    images = [np.asarray(Image.open(io.BytesIO(png))) for png in record.images["samples"]]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, axes = _subplots(rows, columns, (0.8 * columns, 0.8 * rows + 0.4))
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(images):
            axis.imshow(images[i], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    figure.suptitle(f"Samples{_at(record)}{_guided(record)}", fontsize=10)
    return figure


def level_names(scatters: Sequence[Scatter]) -> list[str]:
    """How the noise levels of a PCA scatter are called; the last one is the end of sampling."""
    names = [f"t = {scatter.timestep}, log-SNR {scatter.log_snr:.1f}" for scatter in scatters]
    return [*names[:-1], "final latents"]


def _at(record: ProbeRecord) -> str:
    """When a record was made; a model that was not trained here has no step."""
    return f", training step {record.step:,}" if record.step else ""


def caveats(record: ProbeRecord) -> list[str]:
    """Return what moves a record's samples off the data whatever the model: guidance, and a scheduler that clips."""
    scale, found = record.provenance.get("guidance_scale", 1), []
    if scale != 1 and isinstance(scale, (int, float)):
        found.append(f"guidance {scale:g} shifts the marginals by design")
    if isinstance(clipping := record.provenance.get("clipping"), str):
        found.append(clipping)
    return found


def _guided(record: ProbeRecord) -> str:
    return "".join(f"\n{caveat}" for caveat in caveats(record))


def picture(figure: Figure, dpi: int = 110) -> np.ndarray:
    """The figure as pixels (H, W, 3), 8 bits."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def figure_png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _subplots(rows: int, columns: int, size: tuple[float, float], by_hand: bool = False) -> tuple[Figure, np.ndarray]:
    # Figure, not pyplot: no global state and no backend, so that it works in any thread of any program.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=None if by_hand else "constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _positive(values: np.ndarray) -> np.ndarray:
    """For a logarithmic axis: what is not positive becomes a gap."""
    return np.where(values > 0, values, np.nan)
