"""Images of whole numbers are the same images in training, in probes and for FID; what are no pixels are refused."""

import pytest
import torch
from torch import nn

import ldmprobe
from ldmprobe import FeatureNetwork, LatentCodec, LatentStatistics
from ldmprobe.probing.latent_statistics import encode_images
from ldmprobe.probing.real_features import RealFeatures
from tests.helpers import gaussian_model, refused

PIXELS = torch.randint(0, 256, (40, 2, 4, 4), generator=torch.Generator().manual_seed(0))
FLOATS = PIXELS / 127.5 - 1
AS_OTHERS = {
    "uint8": (PIXELS.to(torch.uint8), FLOATS),
    "uint16": ((PIXELS * 257).to(torch.uint16), FLOATS),
    "bool": (PIXELS > 127, (PIXELS > 127).float() * 2 - 1),
}


@pytest.mark.parametrize("kind", AS_OTHERS)
def test_whole_numbers_become_the_floats_that_they_mean_and_that_is_told(kind):
    images, floats = AS_OTHERS[kind]
    for encode in (LatentCodec().encode, LatentCodec().unscaled, lambda batch: encode_images(LatentCodec(), [batch])):
        with pytest.warns(UserWarning, match=f"Images of {kind} are taken to go from 0 to"):
            torch.testing.assert_close(encode(images), floats)


def test_probe_takes_uint8_images_as_the_floats_that_they_mean():
    settings = {"num_samples": 8, "num_steps": 3, "num_draws": 32}
    with pytest.warns(UserWarning, match="Images of uint8"):
        of_bytes = ldmprobe.probe(gaussian_model(), "bytes", 0, PIXELS.byte(), PIXELS.byte(), **settings)
    of_floats = ldmprobe.probe(gaussian_model(), "floats", 0, FLOATS, FLOATS, **settings)
    for one, other in zip(of_bytes, of_floats, strict=True):
        assert one.fingerprints == other.fingerprints
        assert one.scalars == pytest.approx(other.scalars, rel=1e-4, nan_ok=True)


def test_features_of_uint8_images_are_those_of_the_floats_that_they_mean():
    network, images = FeatureNetwork("builtin:digits"), PIXELS[:, :1].repeat(1, 1, 2, 2)
    with pytest.warns(UserWarning, match="Images of uint8"):
        of_bytes = RealFeatures.of(network, [images.byte()], torch.device("cpu"))
    of_floats = RealFeatures.of(network, [images / 127.5 - 1], torch.device("cpu"))
    assert of_bytes.images == of_floats.images
    torch.testing.assert_close(of_bytes.features, of_floats.features)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS.float(), r"floats from 0 to 255; expected \[−1, 1\]: for pixels from 0 to 255, x / 127.5 − 1"),
        (PIXELS, "int64 do not say which number is white"),
        (torch.where(PIXELS[5] == PIXELS, torch.nan, FLOATS), "NaN or infinite values, the first at place"),
    ],
)
def test_what_are_no_pixels_is_refused_before_anything_is_written(images, message, tmp_path):
    with refused(message):
        ldmprobe.probe(gaussian_model(), tmp_path / "run", 0, images, num_samples=8, num_steps=3)
    assert not list((tmp_path / "run").glob("probes/*"))
    with refused(message):
        RealFeatures.of(nn.Flatten(), [images], torch.device("cpu"))


def test_one_image_again_and_again_is_no_reference():
    with refused("40 real latents are all the same"):
        LatentStatistics.fit(FLOATS[:1].expand(40, -1, -1, -1))
