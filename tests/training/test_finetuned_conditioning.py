"""What a finetune makes of its base's conditioning: samples are told rows of its own data, and a LoRA leaves alone what
a conditioning has of its own.
"""

import pytest
import torch

from ldmprobe import FinetunedDiffusion, LoRA, Source, load_model
from tests.helpers import FLOAT32
from tests.models import spatial
from tests.training.test_finetuning import adam, fitted
from tests.training.test_latent_diffusion import trainer


@pytest.mark.parametrize("kind", ["map", "style"])
def test_samples_of_a_finetune_are_told_rows_of_its_own_data(tmp_path, kind):
    ids = torch.arange(12)

    def others():
        return spatial.data(dataset_kwargs={**spatial.BUILTIN, "seed": 9})

    def module():
        return FinetunedDiffusion(base, lora=LoRA(rank=2, targets=["conv1"]), ema_decay=None)

    def assert_told(conditioning):
        for name, value in conditioning.for_samples(ids).items():
            torch.testing.assert_close(value, expected[name], **FLOAT32)

    spatial.fit(tmp_path, kind, spatial.data())
    base = str(tmp_path / "half.ckpt")
    path = fitted(tmp_path, whole := module(), others())
    (source := others()).setup("fit")
    (batch,) = source.reference_batches(12, held_out=True)
    expected = {
        name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in whole.conditioning.from_batch(batch).items()
    }
    assert_told(whole.conditioning)
    assert_told(load_model(path, "cpu").conditioning)
    of_base = load_model(base, "cpu").conditioning.for_samples(ids)
    assert not any(torch.equal(value, expected[name]) for name, value in of_base.items())
    checkpoint = torch.load(path, weights_only=True)
    rows = [name for name in checkpoint["state_dict"] if ".rows." in name]
    checkpoint["state_dict"] |= {name: checkpoint["state_dict"][name].flip(0) for name in rows}
    torch.save(checkpoint, path)
    trainer(tmp_path / "second", max_steps=4).fit(resumed := module(), others(), ckpt_path=str(path))
    expected = {name: value.flip(0) for name, value in expected.items()}
    assert_told(resumed.conditioning)  # its own, not chosen again


def test_a_lora_leaves_what_a_conditioning_has_of_its_own_as_it_is_in_the_base(tmp_path):
    spatial.fit(tmp_path, "layout", spatial.data())
    base = str(tmp_path / "half.ckpt")
    ids = torch.arange(6)

    def told(model):
        with torch.no_grad():
            return model.conditioning.for_samples(ids)

    def finetuned(folder, pretrained, lora):
        module = FinetunedDiffusion(pretrained, lora=lora, optimizer=adam, ema_decay=None)
        return str(fitted(tmp_path / folder, module, spatial.data())), module

    of_base, (path, module) = load_model(base, "cpu"), finetuned("lora", base, LoRA(rank=2))
    assert all("lora" in name for name, parameter in module.named_parameters() if parameter.requires_grad)
    saved_names = torch.load(path, weights_only=True)["state_dict"]
    assert not any(name.startswith("conditioning.") and ".rows." not in name for name in saved_names)
    without = load_model(Source(path, lora_strength=0.0), "cpu")
    for name, value in told(of_base).items():
        assert torch.equal(told(without)[name], value)
    assert all(
        torch.equal(*pair) for pair in zip(without.network.parameters(), of_base.network.parameters(), strict=True)
    )

    of_lora = load_model(path, "cpu")
    path, module = finetuned("whole", path, None)  # which trains it again, with the network
    assert all(parameter.requires_grad for parameter in module.parameters())
    for name, value in told(of_lora).items():
        assert not torch.equal(told(load_model(path, "cpu"))[name], value)
