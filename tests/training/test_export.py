"""``ldmprobe export``: what diffusers makes of the folder, from the same noise, is what ldmprobe makes of the
checkpoint."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    VQModel,
)
from PIL import Image

from ldmprobe.callbacks import DDIMProbe, DenoisingProbe, PostHocEMA
from ldmprobe.cli import main
from ldmprobe.data.images import ImageData
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import ClassConditioning, SmallCLIP, TextConditioning
from ldmprobe.pretrained.export import as_pipeline
from ldmprobe.pretrained.load import load_pipeline
from ldmprobe.training.checkpoint.load import load_model
from ldmprobe.training.latent_diffusion import LatentDiffusion
from tests import autoencoding, pipelines
from tests.helpers import FLOAT32, WHOLE_PATH, refused, refuses, tiny_unet
from tests.pipelines import conditional_unet
from tests.pretrained.test_pipeline_export import assert_same_images
from tests.training.test_latent_diffusion import stopped


def autoencoder(cls=AutoencoderKL, **options):
    torch.manual_seed(1)
    model = pipelines.autoencoder(cls, **{"in_channels": 1, "out_channels": 1, **options})
    if cls is VQModel:  # its codebook starts near 0, where its latents are not
        torch.nn.init.normal_(model.quantize.embedding.weight)
    return model


def dit(num_classes=10, channels=2, size=4):
    torch.manual_seed(2)
    return pipelines.dit(num_classes, in_channels=channels, out_channels=2 * channels, sample_size=size)


def latents(encoder, scale="measure", network=None, **settings):
    """On the 4×4 latents of 8×8 digits."""
    torch.manual_seed(0)
    network = network or tiny_unet(channels=2, size=None)
    return {"network": network, "codec": LatentCodec(encoder, scale=scale), **settings}


def text(**settings):
    """Captions with a CLIP of one's own, trained with the network; 16×16 shapes in pixel space, unless there is a
    codec."""
    torch.manual_seed(0)
    encoder = SmallCLIP("a small large red circle on the left", width=16, num_heads=2, max_tokens=48)
    conditioning = TextConditioning(encoder, prompts=["a red circle", "a small"], trained=True)
    channels, size = (2, 8) if "codec" in settings else (3, 16)
    network = conditional_unet(in_channels=channels, out_channels=channels, sample_size=size)
    return {"network": network, "conditioning": conditioning, **settings}


def pixels(**settings):
    torch.manual_seed(0)
    return {"network": tiny_unet(channels=1), **settings}


def trained(path: Path, callbacks=(), **settings) -> Path:
    """A checkpoint after two steps on 8×8 digits, or with text on 16×16 shapes."""
    if isinstance(settings.get("conditioning"), TextConditioning):
        shapes = {"num_images": 64, "size": 16}
        data = ImageData("builtin:shapes", dataset_kwargs=shapes, caption_column="caption", batch_size=16, check_rows=5)
    else:
        data = ImageData("builtin:digits", label_column="label", image_size=8, batch_size=16, check_rows=5)
    module = LatentDiffusion(validation_timesteps=2, ema_decay=0.9, **settings)
    return Path(stopped(path.parent, 2, module, data, callbacks=list(callbacks), limit_val_batches=0)).rename(path)


COMBINATIONS = {
    "pixels": ("DDIMPipeline", lambda: pixels()),
    "pixels, v, DDPM": ("DDIMPipeline", lambda: pixels(scheduler=DDPMScheduler(prediction_type="v_prediction"))),
    "pixels, flow": ("DDPMPipeline", lambda: pixels(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))),
    "VQModel": ("LDMPipeline", lambda: latents(autoencoder(VQModel, num_vq_embeddings=16), scale=0.5)),
    "VQModel, shifted": ("LDMPipeline", lambda: latents(autoencoder(VQModel, num_vq_embeddings=16))),
    "AutoencoderKL": ("LDMPipeline", lambda: latents(autoencoder(scaling_factor=0.7, shift_factor=0.4), "config")),
    "AutoencoderKL, shifted": ("LDMPipeline", lambda: latents(autoencoder())),
    "AutoencoderKL, no quant_conv": (
        "LDMPipeline",
        lambda: latents(autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.3), scale="config"),
    ),
    "AutoencoderTiny": ("LDMPipeline", lambda: latents(autoencoder(AutoencoderTiny), scale=0.5)),
    "DiT": ("DiTPipeline", lambda: latents(autoencoder(), network=dit(), conditioning=ClassConditioning(10))),
    "text": ("StableDiffusionPipeline", lambda: text(codec=LatentCodec(autoencoder(in_channels=3, out_channels=3)))),
    "text, pixels": ("StableDiffusionPipeline", text),
    "DiT, pixels": ("DiTPipeline", lambda: {"network": dit(channels=1, size=8), "conditioning": ClassConditioning(10)}),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Checkpoint and folder of a combination, made when first asked for."""
    root, made = tmp_path_factory.mktemp("exported"), {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = root / str(len(made))
            folder.mkdir()
            checkpoint = trained(folder / "model.ckpt", **COMBINATIONS[name][1]())
            assert main(["export", str(checkpoint), str(folder / "pipeline")]) == 0
            made[name] = checkpoint, folder / "pipeline"
        return made[name]

    return make


@pytest.mark.parametrize("name", COMBINATIONS)
def test_images_are_the_same_from_the_same_noise(name, exported):
    checkpoint, folder = exported(name)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert_same_images(pipeline, load_model(checkpoint))
    assert type(pipeline).__name__ == COMBINATIONS[name][0]
    if name.startswith("DiT"):
        assert pipeline.get_label_ids(["0", "9"]) == [0, 9]


@torch.no_grad()
@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_folder_is_read_back_as_the_same_model(name, exported):
    checkpoint, folder = exported(name)
    before = load_model(checkpoint)
    after = load_pipeline(str(folder), prompts=getattr(before.conditioning, "prompts", ("",)))
    shape, prediction = before.latent_shape, before.schedule.prediction.name
    assert (after.latent_shape, after.schedule.prediction.name) == (shape, prediction)
    torch.testing.assert_close(after.schedule.alpha, before.schedule.alpha, **FLOAT32)
    if before.codec.autoencoder is not None:
        assert float(after.codec.scale) == float(before.codec.scale)
    z, t = torch.randn(3, *before.latent_shape), before.schedule.model_time[[0, 500, 999]]
    condition, ids = before.conditioning.for_samples(torch.arange(3)), torch.arange(25)
    torch.testing.assert_close(after.conditioning.for_samples(ids), before.conditioning.for_samples(ids))
    torch.testing.assert_close(after.conditioning.null(3, z.device), before.conditioning.null(3, z.device))
    torch.testing.assert_close(after.predict(z, t, condition), before.predict(z, t, condition), **FLOAT32)
    torch.testing.assert_close(after.codec.decode(z), before.codec.decode(z), **WHOLE_PATH)
    images = torch.rand_like(before.codec.decode(z)) * 2 - 1
    torch.testing.assert_close(after.codec.encode(images), before.codec.encode(images), **WHOLE_PATH)


def test_only_safetensors_are_written_and_nothing_is_left_beside(exported):
    _, folder = exported("VQModel")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    weights = {f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vqvae")}
    configs = {"unet/config.json", "vqvae/config.json", "scheduler/scheduler_config.json", "model_index.json"}
    assert files == weights | configs | {"README.md"}
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_the_checkpoint_is_read_once(exported, monkeypatch):
    checkpoint, load, read = exported("pixels")[0], torch.load, []
    monkeypatch.setattr(torch, "load", lambda path, **options: read.append(path) or load(path, **options))
    assert main(["export", str(checkpoint), "again"]) == 0
    assert read == [checkpoint]


def test_the_card_says_what_it_is(exported):
    card = (exported("VQModel")[1] / "README.md").read_text()
    for line in (
        "library_name: diffusers",
        "| Training steps | 2, exponential",
        "| Latents | 2 × 4 × 4 of VQModel, scaled by 0.5 |",
    ):
        assert line in card
    assert "probes" not in card
    assert "| Classes | 10;" in (exported("DiT")[1] / "README.md").read_text()


def test_of_a_run_it_has_numbers_and_figures(tmp_path):
    probes = [
        DDIMProbe(1, num_samples=8, num_steps=3, num_reference=256),
        DenoisingProbe(1, num_images=16, num_draws=32, num_reference=256),
    ]
    checkpoint = trained(tmp_path / "run" / "checkpoints" / "last.ckpt", probes, **pixels())
    (tmp_path / "run" / "checkpoints" / "probes").replace(tmp_path / "run" / "probes")
    for step, fid in ((2, 12.5), (3, 99.0)):  # the checkpoint is of step 2
        known = {"num_samples": 50, "feature_network": "digits <b>"}
        RecordStore(tmp_path / "run").append(ProbeRecord("quality", step, {"fid": fid}, provenance=known))
    assert main(["export", str(checkpoint), "new/pipeline"]) == 0
    card = Path("new/pipeline/README.md").read_text()
    assert "| Held-out likelihood bound | " in card
    assert "| FID | 12.5, 50 samples, digits &lt;b&gt; (step 2) |" in card
    for figure in ("samples", "step_kl", "denoising_skill", "pca"):
        assert f"(figures/{figure}.png)" in card
        assert Image.open(f"new/pipeline/figures/{figure}.png").size[0] > 100
    assert DiffusionPipeline.from_pretrained("new/pipeline").unet.config.sample_size == 8


# --- what is refused --------------------------------------------------------------------------------------------------

SMALL = {"latent_shape": (2, 4, 4)}
REFUSED = {
    "UNet2DModel with Unconditional in latent space and flow matching": lambda: latents(
        autoencoder(), 1.0, scheduler=FlowMatchEulerDiscreteScheduler(), **SMALL
    ),
    "DiTTransformer2DModel with ClassConditioning in latent space and flow matching": lambda: latents(
        autoencoder(),
        1.0,
        network=dit(),
        conditioning=ClassConditioning(10),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ),
    "AutoencoderTiny are shifted by 0.3": lambda: latents(autoencoder(AutoencoderTiny), 1.0, **SMALL),
    "The pixels are scaled by 0.5 and shifted by 0.3": lambda: pixels(codec=LatentCodec(scale=0.5)),
    "latents are 4×8; a LDMPipeline samples square ones only": lambda: latents(
        autoencoder(), 1.0, latent_shape=(2, 4, 8)
    ),
    "has sample_size 4 and was trained on latents of 8×8": lambda: latents(
        autoencoder(), 1.0, network=dit(), conditioning=ClassConditioning(10), latent_shape=(2, 8, 8)
    ),
    "The model has 1,001 classes": lambda: latents(
        autoencoder(), 1.0, network=dit(1001), conditioning=ClassConditioning(1001)
    ),
    "DDPMScheduler is none that a DDIMScheduler can have": lambda: pixels(
        scheduler=DDPMScheduler(beta_schedule="sigmoid")
    ),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_a_pipeline_would_sample_otherwise_is_refused(text):
    model = LatentDiffusion(**REFUSED[text]()).diffusion_model()
    if "shifted" in text:
        model.codec.shift.fill_(0.3)
    with refused(re.escape(text)):
        as_pipeline(model)


def test_a_refusal_names_what_exports_and_writes_nothing(tmp_path, capsys):
    network = tiny_unet(channels=1, num_class_embeds=11)
    checkpoint = trained(tmp_path / "model.ckpt", network=network, conditioning=ClassConditioning(10))
    error = refuses(capsys, ["export", str(checkpoint), "out"])
    assert (
        "no pipeline for a UNet2DModel with ClassConditioning in pixel space. Those it has: UNet2DModel without"
        in error
    )
    assert not Path("out").exists()


def test_nothing_is_overwritten(capsys):
    Path("full").mkdir()
    Path("full/kept").write_text("mine")
    for folder in ("full", "full/kept"):
        refuses(capsys, ["export", "missing.ckpt", folder], f"{folder} exists already; choose a new folder")
    assert Path("full/kept").read_text() == "mine"


def test_a_checkpoint_that_is_none_is_refused(capsys):
    refuses(capsys, ["export", "missing.ckpt", "out"], "missing.ckpt is not a readable checkpoint")
    assert list(Path().iterdir()) == []


def test_a_place_that_cannot_be_made_is_refused(exported, capsys):
    Path("file").write_text("mine")
    refuses(capsys, ["export", str(exported("pixels")[0]), "file/out"], "file/out cannot be written")


def test_an_export_that_fails_on_the_way_leaves_nothing(exported, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    checkpoint = str(exported("pixels")[0])
    monkeypatch.setattr("ldmprobe.training.export.write_model_card", full)
    refuses(capsys, ["export", checkpoint, "out"], "out cannot be written: No space left on device")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("train", ["all", "decoder"])
def test_an_average_of_the_encoder_is_not_exported_with_the_scale_of_other_latents(train, capsys):
    settings = {"autoencoder": autoencoding.network(), "quantization": None, "adversarial": None, "ema_decay": None}
    done = autoencoding.fit(autoencoding.module(train=train, **settings), 4, callbacks=(PostHocEMA(),))
    done.save_checkpoint("four.ckpt")
    assert main(["export", "four.ckpt", "own"]) == 0
    average = ["export", "four.ckpt", "average", "--ema-length", "0.05"]
    if train == "all":
        refuses(capsys, average, "four.ckpt was measured with its own weights", "leave out --ema-length")
        assert not Path("average").exists()
    else:
        assert main(average) == 0
        own, averaged = (AutoencoderKL.from_pretrained(folder) for folder in ("own", "average"))
        trained_with = settings["autoencoder"].config.scaling_factor
        assert averaged.config.scaling_factor == own.config.scaling_factor == trained_with
        assert "its encoder's own" in Path("own/README.md").read_text()
        assert not torch.equal(averaged.decoder.conv_out.weight, own.decoder.conv_out.weight)
