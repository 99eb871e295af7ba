"""``ldmprobe cache``: written once, whatever happens on the way, and training from it is training as ever."""

import signal
from itertools import chain
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, Features

from ldmprobe.callbacks import DenoisingProbe, NonFinite
from ldmprobe.data.images import ImageData
from ldmprobe.data.latent_cache import LatentCache
from ldmprobe.data.latent_writer import write_cache
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import ClassConditioning, SmallCLIP, TextConditioning, Unconditional
from ldmprobe.models.model_folder import ModelFolder
from ldmprobe.training.latent_diffusion import LatentDiffusion
from tests.helpers import FLOAT32, refused, refuses, tiny_unet
from tests.run_config import component, unet, written
from tests.training.killing import run, signal_at_call
from tests.training.test_latent_diffusion import trainer

SHAPES = {
    "dataset": "builtin:shapes",
    "dataset_kwargs": {"num_images": 100, "size": 32},
    "label_column": "label",
    "channels": 1,
    "batch_size": 8,
}


def shapes(folder: Path | None = None) -> ImageData:
    return ImageData(**SHAPES, latents=None if folder is None else str(folder))


def codec(**options) -> LatentCodec:
    return LatentCodec("builtin:digits", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Losses(L.Callback):
    def __init__(self) -> None:
        self.train: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.train.append(float(outputs["loss"]))
        assert ("image" in batch) == (trainer.datamodule.latents is None)


def train(folder: Path, data: ImageData, **options) -> tuple[list[float], LatentDiffusion, L.Trainer]:
    torch.manual_seed(0)
    network = tiny_unet(num_class_embeds=21, dropout=0.1)
    model = LatentDiffusion(network, codec(**options), conditioning=ClassConditioning(20), validation_timesteps=2)
    losses = Losses()
    probe = DenoisingProbe(every_n_steps=2, num_images=8, num_draws=32, num_reference=32)
    fit = trainer(folder, max_steps=5, callbacks=[losses, NonFinite(), probe])
    fit.fit(model, data)
    return [*losses.train, float(fit.callback_metrics["val/loss"])], model, fit


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, marks=pytest.mark.reliability)
        for options in ({}, {"sample_posterior": True}, {"scale": "measure"})
    ]
    + [{"sample_posterior": True, "scale": "measure"}],
    ids=str,
)
def test_losses_are_those_of_encoding_on_the_fly_and_the_codec_is_not_loaded(tmp_path, monkeypatch, options):
    folder, complete = write_cache(
        shapes(), codec(**options), ClassConditioning(20), tiny_unet(num_class_embeds=21), tmp_path / "latents"
    )
    assert complete
    expected, plain, _ = train(tmp_path / "plain", shapes(), **options)

    def never(*args):
        raise AssertionError("the codec was loaded")

    with monkeypatch.context() as patch:
        patch.setattr(ModelFolder, "load", never)
        losses, _, fit = train(tmp_path / "cached", shapes(folder), **options)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    fit.save_checkpoint(tmp_path / "last.ckpt")  # whole: it does not need the cache, or the codec's folder
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == plain.state_dict().keys()
    torch.testing.assert_close(saved["codec.scale"], plain.codec.scale, **FLOAT32)


def test_each_caption_is_encoded_once_a_file_and_training_gets_what_the_encoder_makes_of_it(tmp_path, monkeypatch):
    torch.manual_seed(0)
    text = TextConditioning(
        SmallCLIP("a small large red green blue circle square on the left right", width=16, max_tokens=32)
    )
    settings = {"caption_column": "caption", "batch_size": 8}
    data = ImageData("builtin:shapes", {"num_images": 60, "size": 16}, **settings)
    network = torch.nn.Linear(1, 1)
    encoded: list[str] = []
    original = SmallCLIP.forward
    monkeypatch.setattr(
        SmallCLIP, "forward", lambda self, captions: encoded.extend(captions) or original(self, captions)
    )
    write_cache(data, LatentCodec(), text, network, tmp_path / "latents", rows_per_shard=16, batch_size=5)
    captions = [list(rows["caption"]) for rows in data.rows.values()]
    files = [set(each[start : start + 16]) for each in captions for start in range(0, len(each), 16)]
    assert sorted(caption for caption in encoded if caption) == sorted(chain(*files))
    assert len(list(chain(*files))) < len(list(chain(*captions)))

    cached = ImageData("builtin:shapes", {"num_images": 60, "size": 16}, latents=str(tmp_path / "latents"), **settings)
    cached.setup()
    text.prepare(network, cached, LatentCodec())
    cached.use_latents(LatentCodec(), text)
    encoded.clear()
    batch = next(iter(cached.train_dataloader()))
    condition = text.from_batch(batch)
    assert encoded == []
    expected = text.from_batch({"caption": batch["caption"]})
    assert condition.keys() == expected.keys()
    for name, value in condition.items():
        torch.testing.assert_close(value, expected[name], **FLOAT32)

    damaged = LatentCache(tmp_path / "latents").prompt_path("")
    damaged.write_bytes(damaged.read_bytes()[:-4])
    with refused(f"{damaged.name} is not readable as cached latents .*; remove it, and `ldmprobe cache"):
        cached.use_latents(LatentCodec(), text)

    trained = TextConditioning(text.encoder, trained=True)
    with refused("the captions were encoded there; here the text encoder is trained"):
        cached.use_latents(LatentCodec(), trained)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "the following arguments are required: data, model"),
        (["--config", "none.yaml"], "File does not exist"),
        (["--batches", "3"], "nrecognized arguments: --batches"),
        (["--config", "CONFIG", "--data.init_args.batch_size", "many"], "data.batch_size cannot be read: Expected a int. Got value: many"),
    ],
)  # fmt: skip
def test_without_a_whole_configuration_it_says_where_its_parts_are_listed(given, reason, tmp_path, capsys):
    config = str(write_config(tmp_path))
    shown = refuses(capsys, ["cache", *[config if word == "CONFIG" else word for word in given]])
    assert reason in shown
    assert "`ldmprobe fit --help`" in shown
    assert "usage" not in shown


def write_config(folder: Path) -> Path:
    codec = component("LatentCodec", autoencoder="builtin:digits")
    config = {
        "data": component("ImageData", **SHAPES),
        "model": component("LatentDiffusion", network=unet(), codec=codec),
        "trainer": {"max_steps": 2, "callbacks": [{"class_path": "ReportWriter"}]},
    }
    return written(config, folder / "config.yaml")


def test_a_killed_run_is_gone_on_with_and_ranks_share_the_work(tmp_path):
    config = ["cache", "--config", str(write_config(tmp_path)), "--rows-per-shard", "16", "--batch-size", "4"]
    whole, parts, output = tmp_path / "whole", tmp_path / "parts", tmp_path / "output.txt"
    write_cache(shapes(), codec(), Unconditional(), tiny_unet(), whole, rows_per_shard=16, batch_size=4)

    first = [*config, "--out", str(parts), "--shard", "0", "--num-shards", "2"]  # four files of seven
    assert run(first, output, signal_at_call, "ldmprobe.models.codec:LatentCodec.unscaled", 6) == -signal.SIGKILL
    assert [path.name for path in parts.glob("*.safetensors")] == ["train-00000.safetensors"]
    (parts / ".train-00002.safetensors.1.partial").write_bytes(b"torn")
    written = (parts / "train-00000.safetensors").stat().st_mtime_ns
    second = {"shard": 1, "num_shards": 2, "rows_per_shard": 16, "batch_size": 4}
    assert write_cache(shapes(), codec(), Unconditional(), tiny_unet(), parts, **second) == (parts, False)
    assert run(first, output) == 0
    assert f"{parts} is complete. Train from it: ldmprobe fit --config" in output.read_text()
    assert (parts / "train-00000.safetensors").stat().st_mtime_ns == written
    assert contents(parts) == contents(whole)
    assert not (tmp_path / "runs").exists()  # as a run of training would have made


# --- what is refused --------------------------------------------------------------------------------------------------


def float_images(folder: Path, row: int, value: float) -> ImageData:
    images = np.linspace(-1, 1, 640, dtype=np.float32).reshape(40, 1, 4, 4)
    images[row, 0, 1, 2] = value
    features = Features({"image": Array3D((1, 4, 4), "float32")})
    Dataset.from_dict({"image": list(images)}, features=features).save_to_disk(folder / "images")
    return ImageData(str(folder / "images"))


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), "float32", "Row 17 of split 'train', column 'image'"),
        (float("inf"), "bfloat16", "Row 17 of split 'train', column 'image'"),
        (1e5, "float16", "latents of row 17 of the (train|held-out) images are not finite in float16"),
    ],
)
def test_latents_that_are_not_finite_are_named_by_row(tmp_path, value, dtype, message):
    data = float_images(tmp_path, 17, value)
    with refused(message):
        write_cache(data, LatentCodec(), Unconditional(), tiny_unet(), tmp_path / "latents", dtype, batch_size=4)


@pytest.mark.parametrize(
    ("out", "told"),
    [
        (".", "is not empty and no cache of latents; give --out a new folder"),
        ("thesis.tex/latents", r"thesis.tex/latents cannot be written to .*choose another --out"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(tmp_path, out, told):
    (tmp_path / "thesis.tex").write_text("…")
    with refused(told):
        write_cache(float_images(tmp_path, 0, 0), LatentCodec(), Unconditional(), tiny_unet(), tmp_path / out)
    assert not (tmp_path / "cache.json").exists()


def test_a_folder_of_other_latents_is_left_alone(tmp_path):
    data = float_images(tmp_path, 0, 0)
    write_cache(data, LatentCodec(), Unconditional(), tiny_unet(), tmp_path / "latents")
    before = contents(tmp_path / "latents")
    with refused(r"latents.dtype is float32, this configuration's is float16"):
        write_cache(data, LatentCodec(), Unconditional(), tiny_unet(), tmp_path / "latents", "float16")
    assert contents(tmp_path / "latents") == before


def test_shards_that_cannot_be_are_refused(tmp_path):
    with refused("--shard is 2 and --num-shards 2; expected 0 <= shard < num-shards"):
        write_cache(shapes(), codec(), Unconditional(), tiny_unet(), tmp_path / "latents", shard=2, num_shards=2)


def test_a_device_that_is_not_there_is_named(tmp_path, capsys):
    error = refuses(
        capsys, ["cache", "--config", str(write_config(tmp_path)), "--out", "latents", "--device", "abacus"]
    )
    assert "There is no device 'abacus' here" in error
    assert not Path("latents").exists()
