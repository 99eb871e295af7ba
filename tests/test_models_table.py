"""docs/MODELS.md: every cell of its table is run here, on a tiny pipeline of the family."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ldmprobe.cli import main
from ldmprobe.data.images import ImageData
from ldmprobe.data.latent_writer import write_cache
from ldmprobe.inference import sample_images
from ldmprobe.io.store import RecordStore
from ldmprobe.models.families import FAMILIES, REFUSED
from ldmprobe.models.lazy import LazyModule
from ldmprobe.pretrained.lora import LoRA
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model
from ldmprobe.training.finetuning import FinetunedDiffusion
from tests.helpers import FLOAT32, WHOLE_PATH
from tests.pipelines import TINY, saved

DOCUMENT = (Path(__file__).parents[1] / "docs" / "MODELS.md").read_text()
TABLE = [re.split(r" *\| *", line.strip("| ")) for line in DOCUMENT.splitlines() if line.startswith("|")]
COLUMNS = TABLE[0][1:]
CELLS = {(row[0].strip("`"), column): cell for row in TABLE[2:] for column, cell in zip(COLUMNS, row[1:], strict=True)}
_FOLDER = TemporaryDirectory()
_TINY = ["--num-samples", "8", "--num-steps", "2", "--device", "cpu"]


def shapes(name: str, latents: Path | None = None) -> ImageData:
    """Images and captions, and for a DiT classes; such that latents are 8×8."""
    size = 8 if name in ("DDPMPipeline", "DDIMPipeline") else 16
    options: dict[str, Any] = {"caption_column": "caption", "batch_size": 4, "check_rows": 1, "channels": 3}
    if name == "DiTPipeline":
        options |= {"label_column": "label", "num_classes": 1000}
    if latents is not None:
        options["latents"] = str(latents)
    return ImageData("builtin:shapes", {"num_images": 20, "size": size}, **options)


@cache
def finetuned(name: str, lora: bool = False, latents: Path | None = None) -> tuple[list[float], Path]:
    """Two steps of training: their losses, and the checkpoint."""

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            losses.append(float(outputs["loss"]))

    losses: list[float] = []
    torch.manual_seed(0)
    options = {"prompts": ["a red cat"] if FAMILIES[row(name)].text else None, "lora": LoRA(rank=2) if lora else None}
    module = FinetunedDiffusion(str(saved(name)), **options, ema_decay=None)
    trainer = L.Trainer(
        default_root_dir=_FOLDER.name,
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[Losses()],
    )
    trainer.fit(module, shapes(name, latents))
    path = Path(_FOLDER.name) / f"{name}{'-lora' if lora else ''}{'-cached' if latents else ''}.ckpt"
    trainer.save_checkpoint(path)
    return losses, path


def fit(name: str) -> None:
    losses, path = finetuned(name)
    assert len(losses) == 2
    assert all(np.isfinite(losses))
    assert not torch.equal(sampled(path, name), sampled(saved(name), name))


def lora(name: str) -> None:
    losses, path = finetuned(name, lora=True)
    assert losses[0] == pytest.approx(finetuned(name)[0][0], rel=1e-5)  # B = 0: at first the same network
    assert path.stat().st_size < finetuned(name)[1].stat().st_size / 2
    assert not torch.equal(sampled(path, name), sampled(saved(name), name))


def probe(name: str) -> None:
    guided = ["--guidance-scale", "3"] if FAMILIES[row(name)].text or name == "DiTPipeline" else []
    prompts = ["--prompt", "a red cat", "a blue dog"] if FAMILIES[row(name)].text else []
    assert main(["probe", str(saved(name)), "--out", "probed", *_TINY, *guided, *prompts]) == 0
    (record,) = RecordStore(Path("probed")).read()
    assert np.isfinite(record.curves["step_kl"].value).all()
    assert record.provenance.get("prompts") == (prompts[1:] or None)
    for figure in ("pca.png", "step_kl.png"):
        assert Image.open(Path("probed") / figure).size[0] > 100


def sample(name: str) -> None:
    assert main(["sample", str(saved(name)), "--out", "grid.png", "--columns", "4", *_TINY]) == 0
    side = shapes(name).dataset_kwargs["size"]
    assert Image.open("grid.png").size == (4 * side + 6, 2 * side + 2)
    assert np.asarray(Image.open("grid.png")).std() > 1


def cached(name: str, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    model = FinetunedDiffusion(str(saved(name)), prompts=["a red cat"] if FAMILIES[row(name)].text else None)
    folder, complete = write_cache(
        shapes(name), model.codec, model.conditioning, model.network, Path("latents").resolve()
    )
    assert complete

    def never(*args: Any) -> None:
        raise AssertionError("a codec or a text encoder was loaded")

    expected = finetuned(name)[0]
    monkeypatch.setattr(LazyModule, "network", property(never))
    losses, path = finetuned(name, latents=folder)
    monkeypatch.undo()
    torch.testing.assert_close(losses, expected, **FLOAT32)
    torch.testing.assert_close(sampled(path, name), sampled(finetuned(name)[1], name), **WHOLE_PATH)


def export(name: str) -> None:
    path = finetuned(name)[1]
    assert main(["export", str(path), "exported"]) == 0
    DiffusionPipeline.from_pretrained("exported")
    torch.testing.assert_close(sampled(Path("exported"), name), sampled(path, name), **WHOLE_PATH)


def export_lora(name: str, capsys: Any) -> None:
    path = finetuned(name, lora=True)[1]
    assert main(["export", str(path), "merged", "--merge"]) == 0
    torch.testing.assert_close(sampled(Path("merged"), name), sampled(path, name), **WHOLE_PATH)
    pipeline = DiffusionPipeline.from_pretrained(saved(name))
    if CELLS[row(name), "LoRA's own file"] == "merged only":
        assert not hasattr(pipeline, "load_lora_weights")
        assert main(["export", str(path), "lora"]) == 2
        assert re.search("diffusers has no LoRA format for the .*; export it with `--merge`", capsys.readouterr().err)
        return
    assert main(["export", str(path), "lora"]) == 0
    pipeline.load_lora_weights("lora")
    assert pipeline.get_active_adapters()


RUN = {
    "fit": fit,
    "LoRA": lora,
    "probe": probe,
    "sample": sample,
    "cache": cached,
    "export": export,
    "LoRA's own file": export_lora,
}


def sampled(model: Path, name: str) -> torch.Tensor:
    prompts = ["a red cat"] if FAMILIES[row(name)].text else None
    return sample_images(load_model(str(model), "cpu", prompts), Sampling(2, 2))


def row(name: str) -> str:
    return name.split(",")[0]


def test_the_table_has_every_family_and_column():
    assert list(RUN) == COLUMNS
    assert {family for family, _ in CELLS} == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("column", RUN)
@pytest.mark.parametrize("name", TINY)
def test_a_cell_is_as_it_says(name, column, capsys, monkeypatch):
    assert CELLS[row(name), column] in ("✓", "merged only")
    RUN[column](name, *{"LoRA's own file": [capsys], "cache": [monkeypatch]}.get(column, []))


def test_what_is_refused_is_named():
    listed = set(
        re.findall(
            r"`(\w+)`", " ".join(re.findall(r"^- (.*?):", DOCUMENT.partition("## Refused by name")[2], re.MULTILINE))
        )
    )
    assert listed == set(REFUSED)
