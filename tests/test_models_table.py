"""docs/MODELS.md: every cell of its table is run here, on a tiny pipeline of the family."""

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

from ldmprobe import FinetunedDiffusion, ImageColumn, ImageData, LoRA, RecordStore, Sampling, load_model, sample_images
from ldmprobe.cli import main
from ldmprobe.data.builtin import load_builtin
from ldmprobe.data.latent_writer import write_cache
from ldmprobe.inference import given_rows, told_rows
from ldmprobe.models.families import FAMILIES, REFUSED
from ldmprobe.models.lazy import LazyModule
from ldmprobe.training.checkpoint.checkpoint import Checkpoint
from tests.helpers import FLOAT32, WHOLE_PATH
from tests.pipelines import BESIDE, TINY, saved
from tests.training.test_finetuning import predictions
from tests.training.test_latent_diffusion import trainer

DOCUMENT = (Path(__file__).parents[1] / "docs" / "MODELS.md").read_text()
TABLE = [
    re.split(r" *\| *", line.strip("| "))
    for line in DOCUMENT.partition("\n## ")[0].splitlines()
    if line.startswith("|")
]
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
    if name == "StableDiffusionInstructPix2PixPipeline":
        options["columns"] = [ImageColumn("image", "source")]
    if latents is not None:
        options["latents"] = str(latents)
    return ImageData("builtin:shapes", {"num_images": 20, "size": size}, **options)


@cache
def finetuned(
    name: str, lora: bool = False, latents: Path | None = None
) -> tuple[list[float], Path, FinetunedDiffusion, dict[str, torch.Tensor]]:
    """Two steps of training: their losses, the checkpoint, the module, and its state before them."""

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            losses.append(float(outputs["loss"]))

    losses: list[float] = []
    torch.manual_seed(0)
    options = {"prompts": prompts(name), "lora": LoRA(rank=2) if lora else None}
    module = FinetunedDiffusion(str(saved(name)), **options, ema_decay=0.5)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    fit = trainer(_FOLDER.name, max_steps=2, limit_val_batches=0, callbacks=[Losses()])
    fit.fit(module, shapes(name, latents))
    path = Path(_FOLDER.name) / f"{name}{'-lora' if lora else ''}{'-cached' if latents else ''}.ckpt"
    fit.save_checkpoint(path)
    return losses, path, module, before


def assert_trained_and_rebuilt(name: str, lora: bool) -> None:
    """What is trained is in the checkpoint, the rest is not, and with the pipeline both are the model that was
    trained."""
    losses, path, module, before = finetuned(name, lora)
    assert len(losses) == 2
    assert all(np.isfinite(losses))
    kept = torch.load(path, weights_only=True)["state_dict"]
    state = module.state_dict()
    assert {key for key in state if key not in before or not torch.equal(state[key], before[key])} <= kept.keys()
    frozen = [key for key in kept if key.startswith(("codec.autoencoder", "conditioning"))]
    assert frozen == [key for key in kept if ".rows." in key]  # held-out rows, where samples are told these
    assert lora == all("lora_" in key for key in kept if "network." in key)
    assert Checkpoint.read(path).base.name == str(saved(name))
    loaded, base = load_model(path, "cpu"), load_model(str(saved(name)), "cpu", prompts(name))
    found = predictions(loaded)
    torch.testing.assert_close(found, predictions(module.eval().diffusion_model()), rtol=1e-4, atol=1e-5)
    base.conditioning = loaded.conditioning
    assert not torch.equal(found, predictions(base))


def fit(name: str) -> None:
    assert_trained_and_rebuilt(name, lora=False)


def lora(name: str) -> None:
    assert_trained_and_rebuilt(name, lora=True)
    (losses, path, *_), (whole_losses, whole, *_) = finetuned(name, lora=True), finetuned(name)
    assert losses[0] == pytest.approx(whole_losses[0], rel=1e-5)  # B = 0: at first the same network
    assert path.stat().st_size < whole.stat().st_size / 2


@cache
def rows_file() -> str:
    path = Path(_FOLDER.name) / "rows.parquet"
    load_builtin("shapes", num_images=20, size=16).to_parquet(path)
    return str(path)


def rows(name: str) -> list[str]:
    """The options that say what the model is told beside text."""
    source = ["--column", "source=image"] if name == "StableDiffusionInstructPix2PixPipeline" else []
    return ["--data", rows_file(), *source] if told_pictures(name) else []


def told_pictures(name: str) -> bool:
    return bool(FAMILIES[row(name)].text_of)


def probe(name: str) -> None:
    guided = ["--guidance-scale", "3"] if FAMILIES[row(name)].text or name == "DiTPipeline" else []
    asked = ["--prompt", "a red cat", "a blue dog"] if FAMILIES[row(name)].text else []
    if told_pictures(name):
        asked = asked[:2]  # of rows without captions
    assert main(["probe", str(saved(name)), "--out", "probed", *_TINY, *guided, *asked, *rows(name)]) == 0
    record = RecordStore(Path("probed")).read()[0]
    assert np.isfinite(record.curves["step_kl"].value).all()
    assert record.provenance.get("prompts") == (asked[1:] or None)
    for figure in ("pca.png", "step_kl.png"):
        assert Image.open(Path("probed") / figure).size[0] > 100


def sample(name: str) -> None:
    assert main(["sample", str(saved(name)), "--out", "grid.png", "--columns", "4", *_TINY, *rows(name)]) == 0
    side = shapes(name).dataset_kwargs["size"]
    assert Image.open("grid.png").size == (4 * side + 6, 2 * side + 2)
    assert np.asarray(Image.open("grid.png")).std() > 1


def cached(name: str, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    model = FinetunedDiffusion(str(saved(name)), prompts=prompts(name))
    where = Path("latents").resolve()
    folder, complete = write_cache(shapes(name), model.codec, model.conditioning, model.network, where)
    assert complete

    def never(*args: Any) -> None:
        raise AssertionError("a codec or a text encoder was loaded")

    expected = finetuned(name)[0]
    monkeypatch.setattr(LazyModule, "network", property(never))
    losses, path, *_ = finetuned(name, latents=folder)
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


RUN = {"fit": fit, "LoRA": lora, "probe": probe, "sample": sample, "cache": cached, "export": export}
RUN |= {"LoRA's own file": export_lora}


def sampled(model: Path, name: str) -> torch.Tensor:
    loaded = load_model(str(model), "cpu", prompts(name))
    if told_pictures(name):
        columns = [ImageColumn("image", "source")] if "source" in loaded.conditioning.columns else []
        loaded.conditioning = told_rows(loaded, given_rows(loaded, rows_file(), "image", columns, 2, 2))
    return sample_images(loaded, Sampling(2, 2))


def row(name: str) -> str:
    return name.split(",")[0]


def prompts(name: str) -> list[str] | None:
    return ["a red cat"] if FAMILIES[row(name)].text else None


def test_the_table_has_every_family_and_column():
    assert list(RUN) == COLUMNS
    assert {family for family, _ in CELLS} == set(FAMILIES)


LONG = ("StableDiffusionPipeline, v", "PixArtSigmaPipeline", *BESIDE)  # as their siblings, but for a setting or picture
SHORT = (("StableDiffusionInpaintPipeline", "fit"), ("StableDiffusionUpscalePipeline", "cache"))
TRAINED = ("LoRA", "cache", "export", "LoRA's own file")
# SDXL is finetuned by LoRA and exported in tests/training, too; AuraFlow is another flow beside Stable Diffusion 3.
LONG_TRAINED = ("StableDiffusionXLPipeline", "AuraFlowPipeline", "DDIMPipeline")


def marked(name: str, column: str) -> Any:
    long = (name in LONG and (name, column) not in SHORT) or (name in LONG_TRAINED and column in TRAINED)
    return pytest.param(name, column, marks=[pytest.mark.reliability] * long, id=f"{name}-{column}")


@pytest.mark.parametrize(("name", "column"), [marked(name, column) for name in TINY for column in RUN])
def test_a_cell_is_as_it_says(name, column, capsys, monkeypatch):
    assert CELLS[row(name), column] in ("✓", "merged only")
    RUN[column](name, *{"LoRA's own file": [capsys], "cache": [monkeypatch]}.get(column, []))


def test_what_is_refused_is_named():
    listed = re.findall(r"^- (.*?):", DOCUMENT.partition("## Refused by name")[2], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(listed))) == set(REFUSED)
