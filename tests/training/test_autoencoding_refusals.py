"""Autoencoding: what is refused, before anything is trained."""

import lightning as L
import pytest
import torch
from diffusers import AutoencoderKL
from lightning.pytorch.strategies import ModelParallelStrategy

from ldmprobe import Adversarial, Equivariance, ImageData, PatchDiscriminator, PerceptualLoss
from ldmprobe.training.image_source import image_shape_in
from ldmprobe.training.sharding import check_not_sharded
from tests.autoencoding import adversarial, images_data, module, network, trainer
from tests.helpers import refused
from tests.pipelines import autoencoder


@pytest.mark.parametrize(
    ("settings", "size", "told"),
    [
        ({"adversarial": adversarial(start=7)}, 16, "from step 7 on.*the run has 4 steps"),
        ({}, 17, "factor 2; set the data's `image_size` to a multiple of 2, such as 16"),
        ({"autoencoder": autoencoder(AutoencoderKL, in_channels=1, out_channels=1), "quantization": None}, 16, "3 channel.*encodes 1"),
        ({"adversarial": Adversarial(PatchDiscriminator(channels=1, image_size=16))}, 16, "`channels` to 3"),
        ({"perceptual": PerceptualLoss("builtin:digits")}, 16, "3 channels but the perceptual.*takes 1"),
        ({"autoencoder": autoencoder(AutoencoderKL, in_channels=3, out_channels=1), "quantization": None}, 16,
         r"\(3, 16, 16\) to images of shape \(1, 16, 16\).*`out_channels`"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_training(settings, size, told):
    with refused(told):
        trainer(4).fit(module(**settings), images_data(size))


def test_what_only_a_batch_of_ones_own_data_shows_is_refused_before_it_trains():
    class Own(L.LightningDataModule):
        def train_dataloader(self):
            return torch.utils.data.DataLoader([{"image": -torch.ones(3, 16, 16)}] * 8, batch_size=4)

    gray = autoencoder(AutoencoderKL, in_channels=3, out_channels=1)
    with refused(r"\(3, 16, 16\) to images of shape \(1, 16, 16\)"):
        trainer(4).fit(module(autoencoder=gray, quantization=None, adversarial=None), Own())
    with refused("from step 6 on.*the run has 6 steps"):
        trainer(-1, max_epochs=3).fit(module(adversarial=adversarial(start=6)), Own())


def test_sharding_and_cached_latents_are_refused():
    with refused("ModelParallelStrategy does not shard; use `strategy: ddp`"):
        check_not_sharded(ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1), "Autoencoding")
    with refused("trained on images, not on latents"):
        image_shape_in(ImageData("builtin:shapes", latents="latents/shapes"))
    assert image_shape_in(L.LightningDataModule()) == ()


def test_fp16_is_refused_where_gradients_are_weighed():
    with refused("adaptive.*16-mixed.*bf16-mixed"):  # Lightning itself makes it bf16 where there is no GPU
        adversarial().check((3, 16, 16), -1, "16-mixed")
    adversarial(adaptive=False).check((3, 16, 16), -1, "16-mixed")
    adversarial().check((), -1, "bf16-mixed")
    with refused("precision bf16-true.*bf16-mixed"):
        trainer(4, precision="bf16-true").fit(module(), images_data())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kl_weight": 1e-6}, "VQModel has no posterior"),
        ({"autoencoder": network()}, "only a VQModel has codes"),
        ({"train": "decoder"}, "leaves codes as they are"),
        ({"reconstruction": "l2"}, "expected 'l1' or 'mse'"),
        ({"autoencoder": torch.nn.Linear(2, 2)}, "Linear is not a supported autoencoder"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, told):
    with refused(told):
        module(**settings)


def test_scales_that_leave_nothing_are_refused():
    with refused(r"scales \[0.0, 1.0\]"):
        Equivariance(scales=(0.0, 1.0))
