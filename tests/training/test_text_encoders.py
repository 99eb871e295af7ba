"""Text encoders that are trained along with a diffusion model."""

import pytest
import torch

from ldmprobe.data.images import ImageData
from ldmprobe.models.conditioning import SmallCLIP, TextConditioning
from ldmprobe.training.checkpoint.load import load_model
from ldmprobe.training.latent_diffusion import LatentDiffusion
from tests.helpers import refused
from tests.pipelines import conditional_unet
from tests.training.test_latent_diffusion import adam, assert_same_state, stopped, trainer


def captioned():
    dataset = {"num_images": 40, "size": 8}
    return ImageData("builtin:shapes", dataset, caption_column="caption", batch_size=8, check_rows=2)


def text_module(words="red blue circle square", **kwargs):
    torch.manual_seed(0)
    text = TextConditioning(
        SmallCLIP(words, width=16, max_tokens=48), prompts=["a red circle", "a blue star"], trained=True
    )
    settings = {"conditioning": text, "ema_decay": 0.5, "validation_timesteps": 1, "optimizer": adam}
    return LatentDiffusion(conditional_unet(in_channels=3, out_channels=3), **{**settings, **kwargs})


@pytest.mark.parametrize("precision", [pytest.param("32-true", marks=pytest.mark.reliability), "bf16-mixed"])
def test_a_text_encoder_trained_along_is_in_the_checkpoint_and_resumes(tmp_path, precision):
    whole, first, resumed = text_module(), text_module(), text_module()
    start = text_module().conditioning.state_dict()
    trainer(tmp_path / "whole", max_steps=4, precision=precision).fit(whole, captioned())
    two = stopped(tmp_path / "first", 2, first, captioned(), precision=precision)
    trainer(tmp_path / "second", max_steps=4, precision=precision).fit(resumed, captioned(), ckpt_path=two)
    assert_same_state(whole.state_dict(), resumed.state_dict())
    loaded = load_model(two)
    assert loaded.conditioning.prompts == ("a red circle", "a blue star")
    assert_same_state(loaded.conditioning.state_dict(), first.conditioning.state_dict())
    assert not torch.equal(next(iter(start.values())), next(iter(loaded.conditioning.state_dict().values())))
    ids = torch.arange(3)
    condition = loaded.conditioning.for_samples(ids)
    torch.testing.assert_close(condition, first.eval().conditioning.for_samples(ids))


def test_a_checkpoint_of_other_words_is_refused(tmp_path):
    one = stopped(tmp_path, 1, text_module(), captioned())
    with refused(
        r"its conditioning\.encoder\.encoders\.text_encoder\.config\.vocab_size is \d+, this configuration's is \d+"
    ):
        trainer(tmp_path).fit(text_module("green star"), captioned(), ckpt_path=one)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        model = text_module(gradient_checkpointing=on)
        model.log = lambda *args, **kwargs: None
        torch.manual_seed(1)
        batch = {"image": torch.rand(4, 3, 8, 8), "caption": ["a red circle", "blue", "square", ""]}
        model.training_step(batch, 0)["loss"].backward()
        assert any(getattr(module, "gradient_checkpointing", False) for module in model.network.modules()) == on
        assert any(getattr(module, "gradient_checkpointing", False) for module in model.conditioning.modules()) == on
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)
