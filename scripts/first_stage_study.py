"""How the first stage moves what the second finds hard: downsampling factor f × {KL, VQ, FSQ} × seeds,
beside diffusion in pixels.

    python scripts/first_stage_study.py configs/studies/first_stage_shapes.yaml --out runs/first_stage_study
    python scripts/first_stage_study.py configs/studies/first_stage_cifar10.yaml --out DIR --dataset PATH_OR_HUB_ID
    python scripts/first_stage_study.py STUDY.yaml --out DIR --quick    # everything once, at settings that say nothing

Each cell trains an autoencoder (`Autoencoding`, with ReconstructionProbe), exports it, and trains the same latent
diffusion model on it: a U-Net whose width grows with f, so that a step costs about the same. f is varied in one or both
of two ways: with as many latent channels c at every f ("c fixed"), where f is also the size of the bottleneck; and with
c/f² fixed, where every latent has as many numbers. FSQ has no cells of more than five channels, since its codebook is a
product.

Each of the three parts of a cell is a process of its own with one thread, in DIR/runs/CELL/seed-K. The same command goes
on where it was stopped: finished parts are not repeated, killed ones continue from their checkpoint. Written are
DIR/table.md, study.parquet and study.png.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ldmprobe import ConfigurationError
from ldmprobe.io.atomic import atomic_write
from study.first_stage import KINDS, WAYS, Cell, Found, figure, markdown, rows_of
from study.jobs import Job, run_jobs, start_command
from study.plan import read_plan as read_keys

MIDDLE = 4  # the f at which both ways are the same
NUM_CODES = 256
LEVELS = {1: [256], 2: [16, 16], 3: [8, 6, 5], 4: [7, 5, 5, 5], 5: [4, 4, 4, 4, 4]}
PARTS = (("autoencoder", "first", "first"), ("export", "export", "exporting"), ("diffusion", "second", "second"))
KEYS = {"size": int, "factors": list, "ways": list, "kinds": list, "channels": int, "seeds": list}
KEYS |= {"data": dict, "first": dict, "second": dict}


@dataclass(frozen=True, kw_only=True)
class Part(Job):
    """One of the three parts of a cell with a seed."""

    cell: Cell
    seed: int
    stage: str


def read_plan(path: Path, dataset: str | None, quick: bool) -> dict[str, Any]:
    """The study in a YAML file.

    Raises:
        ConfigurationError: what is no study, saying what is expected.
    """
    plan = read_keys(path, KEYS)
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
                needs = (Part(f"{name}: {words}", folder / place, needs, cell=cell, seed=seed, stage=stage),)
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
    return start_command(part, arguments)


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
    rows = [row for part in done for row in rows_of(part.cell, part.seed, part.folder.parent)]
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
