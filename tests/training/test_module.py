"""Batches of one's own data are refused early, or told of, where training would go wrong without a word."""

import warnings

import pytest
import torch
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader

from ldmprobe import Autoencoding, LatentDiffusion, NoisyClassification, NoisyClassifier
from tests.autoencoding import autoencoder
from tests.helpers import refused, tiny_unet
from tests.training.test_latent_diffusion import trainer

IMAGES = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8)
LABELS, INDEX = torch.arange(4), torch.arange(4)


def diffusion():
    return LatentDiffusion(tiny_unet(channels=1), validation_timesteps=2, ema_decay=None)


def classification():
    network = NoisyClassifier(1, 10, (8, 16), ("DownBlock2D", "DownBlock2D"), norm_num_groups=4, attention_head_dim=8)
    return NoisyClassification(network, ema_decay=None)


def autoencoding():
    return Autoencoding(autoencoder(AutoencoderKL, in_channels=1, out_channels=1), ema_decay=None)


def fit(folder, module, batch, validation=None, **options):
    loaders = [DataLoader([each] * 2, batch_size=None) for each in (batch, batch if validation is None else validation)]
    trainer(folder, 2, val_check_interval=2, **options).fit(module, *loaders)


@pytest.mark.parametrize("make", [diffusion, classification, autoencoding])
@pytest.mark.parametrize("sanity", [0, 1])
def test_batches_without_names_are_refused_in_training_and_validation(make, sanity, tmp_path):
    for batch, kind in ((IMAGES, "Tensor"), ((IMAGES, LABELS), "list")):  # as a DataLoader makes of a tuple
        with refused(f"A batch is a {kind}; expected a dict with 'image'"):
            fit(tmp_path, make(), batch, num_sanity_val_steps=sanity)


@pytest.mark.parametrize(
    ("make", "batch", "validation", "lacks"),
    [
        (diffusion, {"picture": IMAGES}, None, "with 'picture' lacks 'image'; expected a dict with 'image', such as"),
        (diffusion, {"image": IMAGES}, None, "with 'image' lacks 'index'; expected a dict with 'image', 'index'"),
        (classification, {"image": IMAGES}, None, "with 'image' lacks 'label'"),
        (classification, {"image": IMAGES, "label": LABELS}, None, "with 'image', 'label' lacks 'index'"),
        (autoencoding, {"latent": IMAGES}, None, "with 'latent' lacks 'image'"),
    ],
)
def test_names_that_batches_lack_are_told(make, batch, validation, lacks, tmp_path):
    with refused(lacks):
        fit(tmp_path, make(), batch, validation)


@pytest.mark.parametrize("make", [diffusion, classification, autoencoding])
def test_pixels_from_0_to_255_are_refused_and_those_from_0_to_1_told_of_once(make, tmp_path):
    named = {"label": LABELS, "index": INDEX}
    with refused(r"values from 0 to 255; expected \[−1, 1\]: for pixels from 0 to 255, x / 127.5 − 1"):
        fit(tmp_path, make(), {"image": (IMAGES + 1) * 127.5, **named})
    with pytest.warns(UserWarning, match="values from 0 to 1, and 0 is gray") as told:
        fit(tmp_path, make(), {"image": (IMAGES + 1) / 2, **named})
    assert sum("0 is gray" in str(each.message) for each in told) == 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(tmp_path, make(), {"image": IMAGES, **named})
    assert not [each for each in told if "values from" in str(each.message)]
