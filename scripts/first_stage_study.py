"""How the first stage moves what the second finds hard: downsampling factor f × {KL, VQ, FSQ} × seeds,
beside diffusion in pixels.

    python scripts/first_stage_study.py configs/studies/first_stage_shapes.yaml --out runs/first_stage_study
    python scripts/first_stage_study.py configs/studies/first_stage_cifar10.yaml --out DIR --dataset PATH_OR_HUB_ID
    python scripts/first_stage_study.py STUDY.yaml --out DIR --quick    # everything once, at settings that say nothing

Each cell trains an autoencoder (`Autoencoding`, with ReconstructionProbe), exports it, and trains the same latent
diffusion model on it: a U-Net whose width grows with f, so that a step costs about the same. f is varied in one
or both of two ways: with as many latent channels c at every f ("c fixed"), where f is also the size of the bottleneck; and with c/f² fixed,
where every latent has as many numbers. FSQ has no cells of more than five channels, since its codebook is a product.

Each of the three parts of a cell is a process of its own with one thread, in DIR/runs/CELL/seed-K. The same command goes
on where it was stopped: finished parts are not repeated, killed ones continue from their checkpoint. Written are
DIR/table.md, study.parquet and study.png.

More than 300 lines: a study in one file is read from its plan to its figure.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.stats
import yaml

from ldmprobe import ConfigurationError, RecordStore
from ldmprobe.io.atomic import atomic_write
from ldmprobe.tracking.charts.static import png
from ldmprobe.tracking.style import CLASS_COLORS
from study.jobs import Job, run_jobs, start_process

KINDS = ("pixel", "kl", "vq", "fsq")
WAYS = {"c": "c fixed", "area": "c/f² fixed"}
MIDDLE = 4  # the f at which both ways are the same
NUM_CODES = 256
LEVELS = {1: [256], 2: [16, 16], 3: [8, 6, 5], 4: [7, 5, 5, 5], 5: [4, 4, 4, 4, 4]}
BANDS = {"noisy": (-20.0, -2.0), "middle": (-2.0, 2.0), "clean": (2.0, 20.0)}  # of log-SNR, for skill
PARTS = (("autoencoder", "first", "first"), ("export", "export", "exporting"), ("diffusion", "second", "second"))
KEYS = {"size": int, "factors": list, "ways": list, "kinds": list, "channels": int, "seeds": list}
KEYS |= {"data": dict, "first": dict, "second": dict}


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


@dataclass(frozen=True)
class Part(Job):
    """One of the three parts of a cell with a seed."""

    cell: Cell | None = None
    seed: int = 0
    stage: str = ""


def read_plan(path: Path, dataset: str | None, quick: bool) -> dict[str, Any]:
    """The study in a YAML file.

    Raises:
        ConfigurationError: what is no study, saying what is expected.
    """
    try:
        plan = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"No study can be read from {path}: {error}.") from error
    if not isinstance(plan, dict) or plan.keys() != KEYS.keys():
        raise ConfigurationError(f"{path} is no study; expected the keys {', '.join(KEYS)}, and no others.")
    for key, kind in KEYS.items():
        if not isinstance(plan[key], kind) or not plan[key]:
            raise ConfigurationError(f"{path} has {key} {plan[key]!r}; expected a {kind.__name__} that is not empty.")
    for key, known in (("kinds", KINDS), ("ways", tuple(WAYS))):
        if wrong := [name for name in plan[key] if name not in known]:
            raise ConfigurationError(f"{path} has the {key} {wrong}; expected some of {', '.join(known)}.")
    powers = {2**k for k in range(1, 8)}
    if wrong := [f for f in plan["factors"] if f not in powers or plan["size"] % f or plan["size"] // f < 2]:
        raise ConfigurationError(
            f"{path} has the factors {wrong}; expected powers of 2 that leave 2 of {plan['size']} pixels at least."
        )
    if dataset is not None:
        plan["data"]["dataset"] = dataset
    return quick_plan(plan) if quick else plan


def quick_plan(plan: dict[str, Any]) -> dict[str, Any]:
    """The same with two steps of everything, on 16 pixels."""
    plan |= {"size": 16, "factors": plan["factors"][:2]}
    plan["data"] = merged(plan["data"], {"image_size": 16, "check_rows": 1})
    if plan["data"]["dataset"] == "builtin:shapes":
        plan["data"]["dataset_kwargs"] = {"size": 16, "num_images": 120}
    few = {"num_images": 24, "num_reference": 64, "num_draws": 32, "num_samples": 16, "num_steps": 2, "num_real": 32}
    few |= {"kid_subset_size": 8, "every_n_steps": 2, "every_n_train_steps": 2}
    for stage in ("first", "second"):
        plan[stage]["trainer"]["max_steps"] = 4
        scheduler = plan[stage]["model"]["init_args"].get("lr_scheduler")
        if scheduler:
            scheduler["init_args"]["total_steps"] = 4
        for callback in plan[stage]["trainer"]["callbacks"]:
            settings = callback.get("init_args", {})
            settings |= {name: value for name, value in few.items() if name in settings}
    return plan


def cells_of(plan: dict[str, Any]) -> list[Cell]:
    """All autoencoders, those of both ways once."""
    ways: dict[tuple[str, int, int], list[str]] = {}
    if "pixel" in plan["kinds"]:
        ways["pixel", 1, 3] = plan["ways"]
    for kind in plan["kinds"]:
        for factor in plan["factors"] if kind != "pixel" else []:
            for way in plan["ways"]:
                ratio = (factor / MIDDLE) ** 2 if way == "area" else 1
                channels = round(plan["channels"] * ratio)
                if channels == plan["channels"] * ratio and (kind != "fsq" or channels in LEVELS):
                    ways.setdefault((kind, factor, channels), []).append(way)
    return [Cell(*key, tuple(found)) for key, found in ways.items()]


def autoencoder(cell: Cell, size: int) -> dict[str, Any]:
    """What a cell adds to the model of the first stage."""
    widths = [16, 32, 48, *[64] * 8][: cell.factor.bit_length()]
    levels = len(widths)
    settings: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": cell.channels,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "sample_size": size,
    }
    if cell.kind == "kl":
        return {"autoencoder": {"class_path": "diffusers.AutoencoderKL", "init_args": settings}}
    codes, quantization = NUM_CODES, {"class_path": "ldmprobe.MovingAverageQuantization"}
    if cell.kind == "fsq":
        codes = int(np.prod(LEVELS[cell.channels]))
        levels_of = {"levels": LEVELS[cell.channels]}
        quantization = {"class_path": "ldmprobe.FiniteScalarQuantization", "init_args": levels_of}
    settings["num_vq_embeddings"] = codes
    return {"autoencoder": {"class_path": "diffusers.VQModel", "init_args": settings}, "quantization": quantization}


def network(cell: Cell, size: int, base_width: int = 24) -> dict[str, Any]:
    """The second stage's U-Net, of a cost per step that hardly depends on f: width ∝ f at sides ∝ 1/f."""
    width = max(8, round(base_width * cell.factor / MIDDLE / 8) * 8)
    settings = {
        "sample_size": size // cell.factor,
        "in_channels": cell.channels,
        "out_channels": cell.channels,
        "layers_per_block": 1,
        "block_out_channels": [width, 2 * width],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "add_attention": False,
        "norm_num_groups": 8,
    }
    return {"network": {"class_path": "diffusers.UNet2DModel", "init_args": settings}}


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Settings with others over them, however deep."""
    both = {key: merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(other[key], dict)}
    return {**one, **other, **both}


def prepare(plan: dict[str, Any], out: Path) -> list[Part]:
    """Write down what each part is run with, and list them, the first seed of all cells first.

    Raises:
        ConfigurationError: a cell was begun with other settings.
    """
    parts = []
    data = {"class_path": "ldmprobe.ImageData", "init_args": plan["data"]}
    for seed in plan["seeds"]:
        for cell in cells_of(plan):
            folder = out / "runs" / cell.name / f"seed-{seed}"
            added = {"second": network(cell, plan["size"])}
            if cell.kind != "pixel":
                codec = {"class_path": "ldmprobe.LatentCodec", "init_args": {"autoencoder": str(folder / "export")}}
                added = {"first": autoencoder(cell, plan["size"]), "second": {**added["second"], "codec": codec}}
            for stage, model in added.items():
                config = merged(plan[stage], {"data": data, "model": {"init_args": model}})
                write_config(folder / f"{stage}.yaml", yaml.safe_dump(config))
            name = f"{cell.name}, seed {seed}"
            needs: tuple[Part, ...] = ()
            for words, stage, place in PARTS if cell.kind != "pixel" else PARTS[-1:]:
                needs = (Part(f"{name}: {words}", folder / place, needs, cell, seed, stage),)
                parts += needs
    return parts


def write_config(path: Path, text: str) -> None:
    if path.exists() and path.read_text() != text:
        raise ConfigurationError(
            f"{path} is of a cell with other settings. Set them back, move that cell's folder away, or choose another "
            "--out."
        )
    with atomic_write(path) as file:
        file.write(text.encode())


def start(part: Part) -> subprocess.Popen[bytes]:
    folder = part.folder.parent
    if part.stage == "export":
        shutil.rmtree(folder / "export", ignore_errors=True)  # of a process that was killed
        arguments = ["export", str(folder / "first" / "checkpoints" / "last.ckpt"), str(folder / "export")]
    else:
        names = ("seed_everything", "model.init_args.seed", "data.init_args.seed")
        seeds = [f"--{name}={part.seed}" for name in names]
        arguments = ["fit", f"--config={folder / part.stage}.yaml", *seeds]
        arguments += [f"--run_dir={part.folder}", "--ckpt_path=last"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return start_process(part, [sys.executable, "-m", "ldmprobe.cli", *arguments], environment)


# --- what was found --------------------------------------------------------------------------------------------------


def rows_of(part: Part) -> Iterator[dict[str, Any]]:
    """Every number of a finished diffusion run and of its autoencoder: metric, step, seconds of training, value."""
    assert part.cell is not None
    cell = part.cell
    here = {"kind": cell.kind, "factor": cell.factor, "channels": cell.channels, "seed": part.seed}
    first, second = (RecordStore(part.folder.parent / stage) for stage in ("first", "second"))
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
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

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


def main(argv: list[str]) -> int:
    """0: all is there; 1: parts are missing; 2: there is something to put right first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="STUDY.yaml")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new directory, or this study's")
    parser.add_argument("--dataset", metavar="PATH_OR_HUB_ID", help="in the place of the study's own")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="parts at a time (default: cores)")
    parser.add_argument("--quick", action="store_true", help="tiny settings that try everything and say nothing")
    parser.add_argument("--table-only", action="store_true", help="train nothing; tables of what is finished")
    args = parser.parse_args(argv)
    try:
        plan = read_plan(args.study, args.dataset, args.quick)
        parts = prepare(plan, args.out)
        failed = {} if args.table_only else run_jobs(parts, start, args.processes)
        done = [part for part in parts if part.stage == "second" and part.mark.exists()]
        if not done:
            raise ConfigurationError("No cell is finished, so that there is nothing to lay side by side.")
    except ConfigurationError as error:
        print(f"first_stage_study: error: {error}", file=sys.stderr)
        return 2
    missing = [failed.get(part, f"{part.name} is not finished") for part in parts if not part.mark.exists()]
    rows = [row for part in done for row in rows_of(part)]
    found = Found([cell for cell in cells_of(plan) if any(part.cell == cell for part in done)], rows)
    text = markdown(found, args.study.stem, missing)
    with atomic_write(args.out / "study.parquet") as file:
        pq.write_table(pa.Table.from_pylist(rows), file, compression="zstd")
    for name, content in (("table.md", text.encode()), ("study.png", figure(found))):
        with atomic_write(args.out / name) as file:
            file.write(content)
    print(f"\n{text}\n{args.out / 'table.md'}, study.parquet, study.png")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
