"""Other files from strangers: checkpoints with a spoilt card, references, autoencoders, pipelines, images."""

import contextlib
import copy
import io
import json
import shutil
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler
from hypothesis import strategies as st
from PIL import Image as PILImage

from ldmprobe import ConfigurationError, ImageData, LatentCodec, LatentStatistics, load_model
from ldmprobe.models.denoiser import network_config
from ldmprobe.pretrained.load import load_pipeline
from tests.fuzz.cases import damaged, fuzz, json_values
from tests.fuzz.test_configurations import DESPAIR, held
from tests.helpers import refused, sd_scheduler, tiny_unet


@contextlib.contextmanager
def told() -> Any:
    """Whatever happens within, only a ConfigurationError may come out of it."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        except ConfigurationError as error:
            assert len(str(error)) > 20  # noqa: PT017 (the text is the point)


@st.composite
def spoilt(draw: Any, content: Any) -> Any:
    """A JSON value with some of its values replaced or removed."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(held(content, ""))
        if draw(st.booleans()) or key == "":
            holder[key] = copy.deepcopy(draw(st.sampled_from(DESPAIR) | st.integers(-3, 16) | json_values))
        else:
            del holder[key]
    return content


# --- checkpoints -----------------------------------------------------------------------------------------------------


def _checkpoint() -> dict[str, Any]:
    network = tiny_unet()
    codec = LatentCodec()
    parts = {"network.": network.state_dict(), "codec.": codec.state_dict()}
    card = {
        "network": json.loads(json.dumps(network_config(network))),
        "scheduler": json.loads(json.dumps(network_config(sd_scheduler()))),
        "autoencoder": None,
        "conditioning": {"class_name": "Unconditional"},
        "run": {},
        "latent_shape": [2, 8, 8],
        "ema": False,
    }
    state = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
    return {"ldmprobe": card, "state_dict": state, "global_step": 3}


@cache
def _checkpoint_bytes() -> bytes:
    file = io.BytesIO()
    torch.save(_checkpoint(), file)
    return file.getvalue()


def test_the_checkpoint_that_every_case_spoils_is_read(tmp_path):
    (tmp_path / "one.ckpt").write_bytes(_checkpoint_bytes())
    assert load_model(str(tmp_path / "one.ckpt"), "cpu").trained_steps == 3


@fuzz(30, 2_000, spoilt({name: part for name, part in _checkpoint().items() if name != "state_dict"}))
def test_checkpoints_with_a_spoilt_card(folder: Path, changed: Any) -> None:
    torch.save({"state_dict": _checkpoint()["state_dict"], **changed}, folder / "one.ckpt")
    with told():
        load_model(str(folder / "one.ckpt"), "cpu")


@fuzz(40, 3_000, st.deferred(lambda: damaged(_checkpoint_bytes())) | st.binary(max_size=100) | json_values)
def test_damaged_checkpoints(folder: Path, content: Any) -> None:
    if isinstance(content, bytes):
        (folder / "one.ckpt").write_bytes(content)
    else:
        torch.save(content, folder / "one.ckpt")
    with told():
        load_model(str(folder / "one.ckpt"), "cpu")


# --- references ------------------------------------------------------------------------------------------------------


@cache
def _reference_bytes(folder: Path) -> bytes:
    LatentStatistics.fit(torch.randn(16, 2, 4, 4)).save(folder / "good.safetensors")
    return (folder / "good.safetensors").read_bytes()


@fuzz(60, 5_000, st.data())
def test_damaged_references(folder: Path, data: Any) -> None:
    path = folder / "reference.safetensors"
    path.write_bytes(data.draw(damaged(_reference_bytes(folder)) | st.binary(max_size=60)))
    with told():
        LatentStatistics.load(path)


@fuzz(
    40,
    3_000,
    spoilt({"kind": "dct", "shape": [2, 4, 4], "total_variance": 1.0, "num_latents": 16, "codec": ""}) | json_values,
)
def test_references_with_a_spoilt_header(folder: Path, header: Any) -> None:
    from safetensors.torch import load_file, save_file

    _reference_bytes(folder)
    path = folder / "reference.safetensors"
    save_file(load_file(folder / "good.safetensors"), path, {"ldmprobe": json.dumps(header)})
    with told():
        LatentStatistics.load(path)


# --- autoencoders and pipelines --------------------------------------------------------------------------------------


@cache
def _autoencoder(folder: Path) -> dict[str, Any]:
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(folder / "vae")
    return json.loads((folder / "vae" / "config.json").read_text())


@fuzz(25, 300, st.data())
def test_autoencoders_with_a_spoilt_config(folder: Path, data: Any) -> None:
    config = data.draw(
        spoilt(_autoencoder(folder)).map(json.dumps) | json_values.map(json.dumps) | st.text(max_size=20)
    )
    (folder / "vae" / "config.json").write_text(config, encoding="utf-8", errors="replace")
    with told():
        LatentCodec(str(folder / "vae"))


@cache
def _pipeline(folder: Path) -> Path:
    DDPMPipeline(tiny_unet(channels=3), DDPMScheduler()).save_pretrained(folder / "good")
    return folder / "good"


@fuzz(
    20, 1_000, st.sampled_from(["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"]), st.data()
)
def test_spoilt_pipelines(folder: Path, name: str, data: Any) -> None:
    shutil.rmtree(folder / "theirs", ignore_errors=True)
    shutil.copytree(_pipeline(folder), folder / "theirs")
    path = folder / "theirs" / name
    texts = spoilt(json.loads(path.read_text())).map(json.dumps) | damaged(path.read_bytes()).map(
        lambda b: b.decode(errors="replace")
    )
    path.write_text(data.draw(texts), encoding="utf-8")
    with told():
        load_pipeline(str(folder / "theirs"))


# --- images ----------------------------------------------------------------------------------------------------------


def _picture(kind: str, first: int = 0) -> bytes:
    file = io.BytesIO()
    PILImage.fromarray(np.arange(first, first + 192).astype(np.uint8).reshape(8, 8, 3)).save(file, kind)
    return file.getvalue()


def _kept(folder: Path, content: bytes) -> ImageData:
    """Images of which the second has this content."""
    rows = [{"bytes": picture, "path": None} for picture in (_picture("PNG"), content, _picture("PNG", 60))]
    Dataset.from_dict({"image": rows}, features=Features({"image": Image()})).to_parquet(folder / "p.parquet")
    return ImageData(str(folder / "p.parquet"), image_size=8, channels=3, batch_size=2, held_out_split="train")


def _read(data: ImageData) -> None:
    data.setup()
    next(iter(data.reference_batches(3)))


@fuzz(
    30,
    3_000,
    st.one_of(*(damaged(_picture(kind)) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")))
    | st.binary(max_size=60),
)
def test_damaged_images(folder: Path, content: bytes) -> None:
    with told():
        _read(_kept(folder, content))


@pytest.mark.parametrize(
    ("mode", "size", "kind"),
    # It fills the memory; it is a program, which Pillow would have Ghostscript run.
    [("1", 20_000, "PNG"), ("RGB", 8, "EPS")],
)
def test_an_image_that_does_harm(tmp_path, mode, size, kind):
    file = io.BytesIO()
    PILImage.new(mode, (size, size)).save(file, kind)
    with refused("the image cannot be read"):
        _read(_kept(tmp_path, file.getvalue()))
