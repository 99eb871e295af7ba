"""LatentCodec: loads what diffusers saves, and owns the scale."""

import logging.handlers
from contextlib import nullcontext
from importlib.resources import files

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel

from ldmprobe import ImageData, LatentCodec, load_autoencoder
from ldmprobe.pretrained.source import Source
from ldmprobe.training.checkpoint.load import is_autoencoder
from tests.helpers import FLOAT32, refused, tiny_unet
from tests.pipelines import autoencoder

CLASSES = {cls.__name__: cls for cls in (AutoencoderKL, VQModel, AutoencoderTiny, AutoencoderDC)}
KINDS = list(CLASSES)
SCALE = {"AutoencoderKL": 0.4, "VQModel": 0.3, "AutoencoderTiny": 0.5, "AutoencoderDC": 2.0}
SHIFT = {"AutoencoderKL": 0.25, "VQModel": 0.0, "AutoencoderTiny": 0.0, "AutoencoderDC": 0.0}


def tiny_autoencoder(kind: str, channels: int = 3, levels: int = 3):
    """Divides images by 2^(levels − 1); two latent channels."""
    torch.manual_seed(0)
    options = {"AutoencoderKL": {"shift_factor": SHIFT[kind]}, "VQModel": {"num_vq_embeddings": 16}}.get(kind, {})
    sides = {"in_channels": channels, "out_channels": channels}
    return autoencoder(CLASSES[kind], levels=levels, **sides, scaling_factor=SCALE[kind], **options)


def _images(n: int = 4, channels: int = 3, size: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def _raw_latents(autoencoder, images):
    encoded = autoencoder.encode(images)
    if isinstance(autoencoder, AutoencoderDC):
        return encoded.latent
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_images_of_latents_have_the_shape_that_they_came_from(kind):
    codec = LatentCodec(tiny_autoencoder(kind))
    assert codec.image_shape(codec.latent_shape((3, 24, 16))) == (3, 24, 16)
    with refused(rf"{kind} cannot decode latents of shape \(5, 4, 4\)"):
        codec.image_shape((5, 4, 4))


@pytest.mark.parametrize("subfolder", [None, "vae"])
def test_an_autoencoder_from_a_folder_is_the_one_that_was_saved(kind, subfolder, tmp_path):
    autoencoder = tiny_autoencoder(kind).eval()
    autoencoder.save_pretrained(tmp_path / (subfolder or ""))
    codec = LatentCodec(str(tmp_path), subfolder=subfolder)
    assert type(codec.autoencoder).__name__ == kind
    expected = (_raw_latents(autoencoder, _images()) - SHIFT[kind]) * SCALE[kind]
    torch.testing.assert_close(codec.encode(_images()), expected, **FLOAT32)
    assert codec.latent_shape((3, 16, 16)) == (2, 4, 4)


def test_a_number_is_taken_as_the_scale_and_decode_undoes_it_whatever_it_is(kind):
    autoencoder = tiny_autoencoder(kind).eval()
    raw = _raw_latents(autoencoder, _images())
    with torch.no_grad():
        expected = autoencoder.decode(raw).sample
    codecs = [LatentCodec(autoencoder, scale) for scale in ("config", 1.0, 7.5, "measure")]
    codecs[-1].measure_scale([_images(seed=2)])
    for codec in codecs:
        torch.testing.assert_close(codec.decode(codec.encode(_images())), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codecs[2].encode(_images()), 7.5 * raw, **FLOAT32)


def without_a_scale():
    autoencoder = tiny_autoencoder("AutoencoderKL")
    autoencoder.register_to_config(scaling_factor=None, shift_factor=None)
    return autoencoder


@pytest.mark.parametrize("scale", ["measured", 0.0, -1.0, float("nan")])
def test_what_is_no_scale_is_refused(scale):
    with refused(f"LatentCodec got scale '?{scale}"):
        LatentCodec(tiny_autoencoder("AutoencoderKL"), scale)


MEASURED = {kind: lambda kind=kind: LatentCodec(tiny_autoencoder(kind), scale="measure") for kind in KINDS}
MEASURED |= {"pixels": lambda: LatentCodec(scale="measure"), "no scale": lambda: LatentCodec(without_a_scale())}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("make", MEASURED.values(), ids=MEASURED)
def test_measured_latents_have_mean_0_and_variance_1_or_each_channel_has(make, per_channel):
    codec, batches = make(), [_images(5, seed=1) * 3 + 2, _images(3, seed=2) * 3 + 2]  # of unequal size
    codec.measure_scale(batches, per_channel)
    latents = codec.encode(torch.cat(batches), sample_posterior=False).double()
    rows = latents.transpose(0, 1).flatten(1) if per_channel else latents.view(1, -1)
    assert codec.scale.shape == codec.shift.shape == ((len(rows), 1, 1) if per_channel else ())
    torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows)).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.var(1, correction=0), torch.ones(len(rows)).double(), rtol=1e-4, atol=0)


def test_a_scale_is_measured_once_unless_it_is_known_and_travels_in_the_state_dict():
    codec = LatentCodec(tiny_autoencoder("AutoencoderKL"), scale="measure")
    codec.measure_scale([_images()])
    before = codec.scale.clone()
    codec.measure_scale([100 * _images()])
    assert torch.equal(codec.scale, before)
    other = LatentCodec(tiny_autoencoder("AutoencoderKL"), scale="measure")
    other.load_state_dict(codec.state_dict())
    other.measure_scale([100 * _images()])
    assert torch.equal(other.scale, before)
    known = LatentCodec(tiny_autoencoder("AutoencoderKL"))
    known.measure_scale([_images()])
    assert [float(known.scale), float(known.shift)] == pytest.approx([SCALE["AutoencoderKL"], SHIFT["AutoencoderKL"]])


def by_channel(**settings):
    autoencoder = tiny_autoencoder("AutoencoderKL")
    defaults = {"latents_mean": [-1.6, 0.2], "latents_std": [8.4, 2.3], "shift_factor": None}
    autoencoder.register_to_config(**{**defaults, **settings})
    return autoencoder.eval()


@pytest.mark.parametrize(("spread", "mean", "wanted", "warned"), [(1, 0, 1, False), (2.5, 2, 1, False), (0.3, 0, 1, True),
    (3.5, 0, 1, True), (1, -4, 1, True), (0.3, 0, 0.5, False), (2, 0, 0.5, True)])  # fmt: skip
def test_a_scale_that_was_not_measured_and_is_far_off_is_warned_of(spread, mean, wanted, warned):
    measured = LatentCodec(tiny_autoencoder("AutoencoderKL"), scale="measure")
    measured.measure_scale([_images(16)])
    codec = LatentCodec(measured.autoencoder, scale=spread * float(measured.scale))
    codec.shift.copy_(measured.shift - mean / codec.scale)
    told = rf"standard deviation {spread:.2g}.* noise levels are for 0 and {wanted:g}.*`scale: measure`"
    with pytest.warns(UserWarning, match=told) if warned else nullcontext():
        codec.warn_of_scale([_images(16)], wanted)


def test_mean_and_standard_deviation_by_channel_scale_as_stable_diffusion_xl_does():
    autoencoder = by_channel()
    codec, raw = LatentCodec(autoencoder), _raw_latents(autoencoder, _images())
    mean, deviation = (torch.tensor(values).view(1, 2, 1, 1) for values in ([-1.6, 0.2], [8.4, 2.3]))
    torch.testing.assert_close(codec.encode(_images()), (raw - mean) * SCALE["AutoencoderKL"] / deviation, **FLOAT32)
    with torch.no_grad():
        expected = autoencoder.decode(raw).sample
    torch.testing.assert_close(codec.decode(codec.encode(_images())), expected, rtol=1e-4, atol=1e-4)
    plain = LatentCodec(by_channel(), scale=1.0)
    assert plain.description != codec.description
    plain.load_state_dict(codec.state_dict())
    assert torch.equal(plain.encode(_images()), codec.encode(_images()))


def test_a_scale_that_only_the_codec_reads_is_not_said_to_be_ignored(tmp_path):
    network = tiny_autoencoder("VQModel")
    network.register_to_config(latents_mean=[0.1, 0.2], latents_std=[1.0, 2.0], scaling_factor=1.0)
    network.save_pretrained(tmp_path / "scale")
    network.register_to_config(another_setting=1)
    network.save_pretrained(tmp_path / "more")
    said, logger = logging.handlers.BufferingHandler(100), logging.getLogger("diffusers.configuration_utils")
    logger.addHandler(said)
    try:
        LatentCodec(str(tmp_path / "scale")).load()
        assert said.buffer == []
        LatentCodec(str(tmp_path / "more")).load()
    finally:
        logger.removeHandler(said)
    assert "another_setting" in said.buffer[0].getMessage()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"latents_std": None}, "has latents_mean and no latents_std"),
        ({"latents_std": [8.4, 0.0]}, r"latents_std \[8.4, 0.0\]; expected a number for each channel, in latents_std above 0"),
        ({"latents_mean": 0.1}, "latents_mean is 0.1; expected a list of numbers"),
        ({"shift_factor": 0.3}, "has both a shift_factor, 0.3, and latents_mean"),
        ({"scaling_factor": 0.0}, "scaling_factor is 0"),
        ({"scaling_factor": [1.0]}, r"scaling_factor is \[1.0\]; expected a number"),
    ],
)  # fmt: skip
def test_scales_that_contradict_each_other_are_refused(settings, told):
    with refused(told):
        LatentCodec(by_channel(**settings))


def test_an_autoencoder_of_numbers_of_codes_and_another_network_are_refused():
    autoencoder = tiny_autoencoder("VQModel")
    autoencoder.register_to_config(lookup_from_codebook=True)
    with refused("lookup_from_codebook"):
        LatentCodec(autoencoder)
    with refused("UNet2DModel is not a supported autoencoder"):
        LatentCodec(tiny_unet())


def test_without_an_autoencoder_latents_are_the_images():
    codec = LatentCodec()
    images = _images(channels=5)
    assert torch.equal(codec.encode(images), images)
    assert torch.equal(codec.decode(images), images)
    assert codec.latent_shape((5, 7, 7)) == codec.image_shape((5, 7, 7)) == (5, 7, 7)
    scaled = LatentCodec(scale=2.0)
    torch.testing.assert_close(scaled.decode(scaled.encode(images)), images, **FLOAT32)
    assert codec.image_channels is None


def test_the_posterior_is_sampled_only_if_asked_and_never_for_probes():
    codec = LatentCodec(tiny_autoencoder("AutoencoderKL"), sample_posterior=True)
    assert not torch.equal(codec.encode(_images()), codec.encode(_images()))
    mode = codec.encode(_images(), sample_posterior=False)
    assert torch.equal(mode, codec.encode(_images(), sample_posterior=False))
    assert torch.equal(mode, LatentCodec(codec.autoencoder).encode(_images()))


def test_it_stays_in_eval_mode_and_frozen(kind):
    codec = LatentCodec(tiny_autoencoder(kind).train())
    parent = torch.nn.ModuleList([codec]).train()
    assert parent.training
    assert not any(module.training for module in codec.modules())
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    assert not codec.encode(_images().requires_grad_()).requires_grad


def test_latents_are_float32_under_autocast(kind):
    codec = LatentCodec(tiny_autoencoder(kind))
    expected = codec.encode(_images())
    with torch.autocast("cpu", torch.bfloat16):
        latents = codec.encode(_images())
        images = codec.decode(latents.bfloat16())
    assert torch.equal(latents, expected)
    assert images.dtype == torch.float32


def test_the_digits_autoencoder_is_small_and_reconstructs_held_out_digits_from_latents_of_about_unit_variance():
    data = ImageData("builtin:digits", image_size=32)
    data.setup()
    codec = LatentCodec("builtin:digits")
    images = next(data.reference_batches(150, held_out=True))["image"]
    latents = codec.encode(images)
    assert 0.8 < latents.std() < 1.25
    assert abs(latents.mean()) < 0.2
    assert (codec.decode(latents) - images).pow(2).mean() < 1e-3
    assert images.var() > 0.1  # an empty picture would not do
    assert codec.latent_shape(data.image_shape) == (2, 8, 8)
    folder = files("ldmprobe.models") / "digits_autoencoder"
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) < 300_000


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "size", "message"),
    [
        (1, 16, r"3 channel\(s\) but {kind} encodes 1; set the data's `channels: 1`"),
        (3, 18, r"factor 4.*`image_size` to a multiple of 4, such as 16\."),
        (3, 30, r"factor 4.*`image_size` to a multiple of 4, such as 28\."),
        (3, 2, "image_size"),
    ],
)
def test_images_that_do_not_fit_are_refused_with_what_to_write(kind, channels, size, message):
    with refused(message.format(kind=kind)):
        LatentCodec(tiny_autoencoder(kind, channels=channels)).latent_shape((3, size, size))


@pytest.mark.parametrize("name", ["no/such-autoencoder", "/no/such/folder/at/all"])
def test_an_autoencoder_that_is_nowhere_is_refused(name):
    with refused(f"No autoencoder could be loaded from '{name}'"):
        LatentCodec(name)


def test_a_folder_with_another_model_is_refused_by_its_class(tmp_path):
    tiny_unet().save_pretrained(tmp_path)
    with refused("holds a UNet2DModel; expected one of AutoencoderKL, VQModel, AutoencoderTiny"):
        LatentCodec(str(tmp_path))


@pytest.mark.parametrize(("safe", "why"), [(True, ""), (False, "it has no safetensors")])
def test_broken_and_pickled_weights_are_refused(tmp_path, safe, why):
    tiny_autoencoder("AutoencoderKL").save_pretrained(tmp_path, safe_serialization=safe)
    for weights in tmp_path.glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:1000])
    with refused(f"No AutoencoderKL can be loaded from .*: .*{why}"):
        LatentCodec(str(tmp_path))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([torch.zeros(4, 1, 8, 8)], "do not vary"),
        ([torch.full((4, 1, 8, 8), float("nan"))], "do not vary"),
        ([], "no scale can be measured"),
    ],
)
def test_images_that_have_no_scale_are_refused(batches, message):
    with refused(message):
        LatentCodec(scale="measure").measure_scale(batches)


def test_an_autoencoder_in_the_hubs_cache_is_found_by_its_id_and_a_pipeline_is_none(tmp_path, monkeypatch):
    """In the layout of the hub's cache: a snapshot folder for each commit, and what each branch points to."""
    for name, revision in (("vae", "main"), ("vae", "v2"), ("pipeline", "main")):
        repository, commit = tmp_path / f"models--someone--{name}", f"{len(revision)}" * 40
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        folder = repository / "snapshots" / commit
        torch.manual_seed(len(revision))
        autoencoder(AutoencoderTiny).save_pretrained(folder if name == "vae" else folder / "vae")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert is_autoencoder("someone/vae")
    assert not is_autoencoder("someone/pipeline")
    assert not is_autoencoder("someone/else")
    newest, tagged = (load_autoencoder(Source("someone/vae", revision), "cpu") for revision in (None, "v2"))
    assert not torch.equal(next(newest.network.parameters()), next(tagged.network.parameters()))
    with refused("`revision` is of the hub, but .* is a folder here"):
        load_autoencoder(Source(str(folder / "vae"), "v2"), "cpu")
