"""What the study of the first stage found: the numbers of its cells, pooled over seeds, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ldmprobe import RecordStore
from ldmprobe.tracking.charts.static import png
from ldmprobe.tracking.style import CLASS_COLORS

KINDS = ("pixel", "kl", "vq", "fsq")
WAYS = {"c": "c fixed", "area": "c/f² fixed"}
BANDS = {"noisy": (-20.0, -2.0), "middle": (-2.0, 2.0), "clean": (2.0, 20.0)}  # of log-SNR, for skill


@dataclass(frozen=True)
class Cell:
    """An autoencoder and the ways of varying f that it belongs to."""

    kind: str
    factor: int
    channels: int
    ways: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}-f{self.factor}-c{self.channels}"


def rows_of(cell: Cell, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Every number of a finished diffusion run and of its autoencoder: metric, step, seconds of training, value.

    Those of metric "skill" have their log-SNR in the place of seconds.
    """
    here = {"kind": cell.kind, "factor": cell.factor, "channels": cell.channels, "seed": seed}
    first, second = (RecordStore(folder / stage) for stage in ("first", "second"))
    if cell.kind != "pixel":
        for name, value in first.read("reconstruction")[-1].scalars.items():
            yield here | {"metric": name, "step": -1, "seconds": float("nan"), "value": value}
    clock = {record.step: record.scalars["training_seconds"] for record in second.read("clock")}
    for record in second.read("quality"):
        yield here | {
            "metric": "fid",
            "step": record.step,
            "seconds": clock[record.step],
            "value": record.scalars["fid"],
        }
    last = second.read("denoising")[-1]
    skill = last.curves["denoising_skill"]
    for log_snr, value in zip(skill.log_snr.tolist(), skill.value.tolist(), strict=True):
        yield here | {"metric": "skill", "step": last.step, "seconds": log_snr, "value": value}
    for band, (low, high) in BANDS.items():
        inside = (skill.log_snr >= low) & (skill.log_snr < high)
        if inside.any():
            value = float(skill.value[inside].mean())
            yield here | {"metric": f"skill_{band}", "step": last.step, "seconds": float("nan"), "value": value}


@dataclass(frozen=True)
class Found:
    """The numbers of all finished cells."""

    cells: list[Cell]
    rows: list[dict[str, Any]]

    @property
    def ways(self) -> list[str]:
        return [way for way in WAYS if any(way in cell.ways for cell in self.cells)]

    def of(self, cell: Cell, metric: str) -> dict[int, list[dict[str, Any]]]:
        """Rows of a metric by seed, in order of training step."""
        mine: dict[int, list[dict[str, Any]]] = {}
        for row in self.rows:
            same = (row["kind"], row["factor"], row["channels"]) == (cell.kind, cell.factor, cell.channels)
            if same and row["metric"] == metric:
                mine.setdefault(row["seed"], []).append(row)
        return mine

    def last(self, cell: Cell, metric: str) -> dict[int, float]:
        """The last value of each seed."""
        return {seed: rows[-1]["value"] for seed, rows in self.of(cell, metric).items()}

    def fid_at(self, cell: Cell, seconds: float) -> dict[int, float]:
        """FID of each seed after so many seconds of training, on a line between probes."""
        return {
            seed: float(np.interp(seconds, [r["seconds"] for r in rows], [r["value"] for r in rows]))
            for seed, rows in self.of(cell, "fid").items()
        }

    @property
    def seconds(self) -> float:
        """As long as every run was trained."""
        return min(rows[-1]["seconds"] for cell in self.cells for rows in self.of(cell, "fid").values())


def pooled_over_seeds(groups: list[dict[int, float]]) -> list[tuple[float, float]]:
    """Mean of each group over its seeds, and half of its 95 % interval if all groups scatter alike: with few seeds a
    cell, the scatter of all cells says more than that of each. NaN where nothing was measured, or nothing twice.
    """
    values = [np.array(list(group.values())) for group in groups]
    free = sum(max(len(each) - 1, 0) for each in values)
    squares = sum(float(np.sum((each - each.mean()) ** 2)) for each in values if len(each))
    width = float(scipy.stats.t.ppf(0.975, free)) * (squares / free) ** 0.5 if free else float("nan")
    return [(float(each.mean()), width / len(each) ** 0.5) if len(each) else (float("nan"),) * 2 for each in values]


def in_words(value: float, half_width: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.3g}" + (f" ± {half_width:.2g}" if half_width > 0 else "")


def markdown(found: Found, title: str, missing: list[str]) -> str:
    seconds = found.seconds
    columns = {
        "PSNR, dB": "psnr", "rFID": "rfid", "bits/px": "bits_per_pixel", "codes used": "codes_used",
        "latent slope": "latent_slope", "FID": "fid",
    }  # fmt: skip
    bands = {f"skill, {band}": f"skill_{band}" for band in BANDS}
    heads = ["kind", "f", "c", *columns, f"FID at {seconds:.0f} s", *bands]
    lines = [
        f"# {title}",
        "",
        "± is 95 % over seeds (Student's t, the scatter of all rows pooled). Skill is the denoising probe's, by band of",
        "log-SNR.",
    ]
    for way in found.ways:
        cells = [cell for cell in found.cells if way in cell.ways]
        groups = [[found.last(cell, metric) for cell in cells] for metric in (*columns.values(), *bands.values())]
        groups.insert(len(columns), [found.fid_at(cell, seconds) for cell in cells])
        rows = zip(*(pooled_over_seeds(group) for group in groups), strict=True)
        lines += ["", f"## {WAYS[way]}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for cell, row in zip(cells, rows, strict=True):
            texts = [cell.kind, str(cell.factor), str(cell.channels), *(in_words(*each) for each in row)]
            lines.append(f"| {' | '.join(texts)} |")
        lines += ["", *claims(cells, found)]
    lines += [f"\nMissing: {each}." for each in missing]
    return "\n".join(lines) + "\n"


def claims(cells: list[Cell], found: Found) -> Iterator[str]:
    """Whether VQ or FSQ latents give better samples than KL's, paired by seed: at each f, and at all of them."""
    fids = {(cell.kind, cell.factor): found.last(cell, "fid") for cell in cells}
    for kind in ("vq", "fsq"):
        factors = [factor for one, factor in fids if one == kind and ("kl", factor) in fids]
        pairs = [(fids[kind, factor], fids["kl", factor]) for factor in factors]
        differences = pooled_over_seeds([{seed: a[seed] - b[seed] for seed in a.keys() & b.keys()} for a, b in pairs])
        for factor, each in zip(factors, differences, strict=True):
            yield f"- FID of {kind} less that of kl at f = {factor}: {in_words(*each)}; {judged(kind, *each)}."
        if len(differences) > 1:
            value, width = np.mean([each[0] for each in differences]), np.linalg.norm([each[1] for each in differences])
            mean = float(value), float(width) / len(differences)
            yield f"- FID of {kind} less that of kl at all f: {in_words(*mean)}; {judged(kind, *mean)}."


def judged(kind: str, value: float, half_width: float) -> str:
    if not abs(value) > half_width:  # NaN, too: of one seed
        return "not told apart by these seeds"
    return f"{kind} is {'better' if value < 0 else 'worse'}"


def figure(found: Found) -> bytes:
    drawn = Figure(figsize=(12, 0.4 + 3.5 * len(found.ways)), layout="constrained")
    axes = drawn.subplots(len(found.ways), 3, squeeze=False)
    color = dict(zip(KINDS, CLASS_COLORS, strict=False))
    for row, way in zip(axes, found.ways, strict=True):
        for kind in KINDS:
            cells = sorted((c for c in found.cells if c.kind == kind and way in c.ways), key=lambda c: c.factor)
            if not cells:
                continue
            for metric, dash in (("fid", "-"), ("rfid", ":")):
                if kind == "pixel" and metric == "rfid":
                    continue
                means = pooled_over_seeds([found.last(cell, metric) for cell in cells])
                row[0].errorbar(
                    [cell.factor for cell in cells], [mean for mean, _ in means],
                    [float(np.nan_to_num(width)) for _, width in means], color=color[kind], ls=dash, marker="o", ms=4,
                    capsize=2, label=kind if metric == "fid" else None,
                )  # fmt: skip
            for k, cell in enumerate(cells):
                shade = 0.35 + 0.65 * (k + 1) / len(cells)
                for seed, rows in found.of(cell, "fid").items():
                    label = f"{kind}, f = {cell.factor}" if seed == min(found.of(cell, "fid")) else None
                    row[1].plot(
                        [r["seconds"] for r in rows[1:]], [r["value"] for r in rows[1:]], color=color[kind], alpha=shade,
                        lw=0.6 + 0.5 * k, label=label,
                    )  # fmt: skip
                curves = list(found.of(cell, "skill").values())
                log_snr = [r["seconds"] for r in curves[0]]
                mean = np.mean([[r["value"] for r in rows] for rows in curves], 0)
                row[2].plot(log_snr, mean, color=color[kind], alpha=shade, lw=0.6 + 0.5 * k)
        factors = sorted({cell.factor for cell in found.cells})
        row[0].set(xscale="log", yscale="log", xlabel="f", ylabel=f"{WAYS[way]}\nFID (dotted: rFID)")
        row[0].set_xticks(factors, [str(factor) for factor in factors])
        row[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        row[0].yaxis.set_major_formatter("{x:g}")
        row[0].minorticks_off()
        row[1].set(xlabel="seconds of training", ylabel="FID", ylim=(0, None))
        row[2].set(xlabel="log-SNR (noisy to clean)", ylabel="denoising skill", ylim=(-1, 1))
        row[0].legend(frameon=False, fontsize=8)
        for axis in row:
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
    drawn.suptitle("First stage by downsampling factor f (thicker: larger f; bars: 95 % over seeds)", fontsize=11)
    return png(drawn)
