"""The base that a finetune is on top of: where it lies, and that it is the same."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmprobe import FinetunedDiffusion, LatentDiffusion, LoRA, Source, load_model
from ldmprobe.cli import main
from ldmprobe.pretrained.finetune import base_fingerprint
from ldmprobe.training.checkpoint.checkpoint import Checkpoint
from tests.helpers import refused, refuses
from tests.pipelines import TINY, conditional_unet, saved
from tests.training.test_finetuning import SD, adam, finetune, fitted, predictions, shapes
from tests.training.test_latent_diffusion import assert_same_state, trainer


def test_weights_that_are_saved_again_are_the_same_base(tmp_path):
    """Files of older versions of transformers have positions, and some have tied weights twice."""
    folder = shutil.copytree(saved(SD), tmp_path / "older")
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    name, weight = next(iter(tensors.items()))
    tensors |= {"text_model.embeddings.position_ids": torch.arange(12)[None], f"{name}_again": weight.clone()}
    save_file(tensors, file, {"format": "pt"})
    before, older = (base_fingerprint(load_model(place)) for place in (saved(SD), folder))
    assert before == older
    save_file({**tensors, name: weight + 1e-3}, file, {"format": "pt"})
    assert base_fingerprint(load_model(folder)) != before


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A LoRA, and a LoRA of that, whose base is elsewhere afterwards: the folder of ``lora.ckpt``, ``lora2.ckpt`` and
    ``new``, and what each predicted."""
    folder = tmp_path_factory.mktemp("moved")
    shutil.copytree(saved(SD), folder / "old")
    paths, before = [folder / "old"], {}
    torch.manual_seed(0)
    for name in ("lora", "lora2"):
        module = FinetunedDiffusion(str(paths[-1]), optimizer=adam, lora=LoRA(rank=1), validation_timesteps=1)
        paths.append(fitted(folder, module, shapes()).rename(folder / f"{name}.ckpt"))
        before[name] = predictions(load_model(paths[-1]))
    (folder / "old").rename(folder / "new")
    return folder, before


def test_a_finetune_whose_base_has_moved_is_read_with_its_new_place(moved):
    folder, before = moved
    lora, base = str(folder / "lora.ckpt"), ["--base", str(folder / "new")]
    torch.testing.assert_close(predictions(load_model(Source(lora, base=base[1]))), before["lora"])
    few = ["--num-samples=8", "--num-steps=2", "--device=cpu"]
    assert main(["probe", lora, "--out", "probed", *few, *base]) == 0
    assert main(["sample", lora, "--out", "samples.png", *few, *base]) == 0
    assert main(["export", lora, "exported", *base]) == 0
    assert "finetuned from new and" in Path("exported/README.md").read_text()


def test_a_finetune_of_that_is_read_with_the_export_of_the_first(moved):
    folder, before = moved
    with refused(r"Exported with `--merge` and that `--base`, it will do as .*lora2.ckpt"):
        load_model(folder / "lora2.ckpt")
    with refused(r"base weights in .*new are not those that .*lora2.ckpt was finetuned from, .*lora.ckpt"):
        load_model(Source(str(folder / "lora2.ckpt"), base=str(folder / "new")))
    assert main(["export", str(folder / "lora.ckpt"), "lora", "--merge", "--base", str(folder / "new")]) == 0
    torch.testing.assert_close(
        predictions(load_model(Source(str(folder / "lora2.ckpt"), base="lora"))), before["lora2"]
    )


def test_a_run_goes_on_with_its_base_elsewhere(moved, tmp_path):
    folder, _ = moved
    torch.manual_seed(0)
    whole, resumed = (
        FinetunedDiffusion(str(folder / "new"), optimizer=adam, lora=LoRA(rank=1), validation_timesteps=1)
        for _ in range(2)
    )
    trainer(tmp_path / "whole", max_steps=4).fit(whole, shapes())
    fit = trainer(tmp_path / "resumed", max_steps=4)
    fit.fit(resumed, shapes(), ckpt_path=str(folder / "lora.ckpt"))
    assert_same_state(whole.state_dict(), resumed.state_dict())
    fit.save_checkpoint(tmp_path / "resumed.ckpt")
    assert Checkpoint.read(tmp_path / "resumed.ckpt").base.name == str(folder / "new")


@pytest.fixture(scope="module")
def of_another_base(tmp_path_factory):
    """A LoRA of a base whose weights are others afterwards."""
    folder = tmp_path_factory.mktemp("moved")
    pipeline = TINY[SD]()
    pipeline.save_pretrained(folder / "base")
    module = FinetunedDiffusion(str(folder / "base"), lora=LoRA(rank=2), ema_decay=None, validation_timesteps=1)
    path = fitted(folder, module, shapes(), max_steps=1)
    with torch.no_grad():
        pipeline.unet.conv_in.weight += 1e-3
    pipeline.save_pretrained(folder / "base")
    return folder / "base", path


def test_a_checkpoint_on_another_base_is_refused(tmp_path, of_another_base):
    base, path = of_another_base
    with refused(r"base weights in .*base are not those .* finetuned from, then in .*base"):
        load_model(path)
    module = FinetunedDiffusion(str(base), lora=LoRA(rank=2), ema_decay=None, validation_timesteps=1)
    with refused("goes on only with the pretrained weights that it was finetuned from"):
        trainer(tmp_path, max_steps=2).fit(module, shapes(), ckpt_path=str(path))


def test_a_checkpoint_whose_base_is_gone_says_which_and_what_to_do(moved, capsys):
    lora = moved[0] / "lora.ckpt"
    error = refuses(capsys, ["export", str(lora), "out"])
    assert re.search(
        r"lora.ckpt holds what was trained on top of .*old, which cannot be loaded: .*there is no such", error
    )
    assert f"`--base` where {lora} is probed, sampled or exported, `pretrained` where `ldmprobe fit` goes on" in error
    assert not Path("out").exists()


def test_a_base_is_refused_where_there_is_none(tmp_path, capsys):
    scratch = LatentDiffusion(conditional_unet(), conditioning=finetune().conditioning, latent_shape=(2, 8, 8))
    fit = trainer(tmp_path)
    fit.strategy.connect(scratch)
    fit.save_checkpoint(tmp_path / "scratch.ckpt")
    for command in (["export", str(tmp_path / "scratch.ckpt"), "out"], ["sample", str(tmp_path / "scratch.ckpt")]):
        refuses(capsys, [*command, "--base", str(saved(SD))], "was trained from scratch and needs no base")
    error = refuses(capsys, ["probe", str(saved(SD)), "--out", "out", "--base", str(saved(SD))])
    assert "is a pipeline, which is whole; leave out `--base`" in error


def test_going_on_with_another_kind_of_run_is_refused(tmp_path, of_another_base):
    base, path = of_another_base
    whole = FinetunedDiffusion(str(base), ema_decay=None, validation_timesteps=1)
    whole.base_weights = torch.load(path, weights_only=True)["ldmprobe"]["base_weights"]
    with refused(r"its lora.rank is 2, this configuration's is None"):
        trainer(tmp_path, max_steps=2).fit(whole, shapes(), ckpt_path=str(path))
    scratch = LatentDiffusion(conditional_unet(), whole.codec, conditioning=whole.conditioning, ema_decay=None)
    with refused("another model: its base_weights is"):
        trainer(tmp_path, max_steps=2).fit(scratch, shapes(), ckpt_path=str(path))
