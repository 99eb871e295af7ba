"""Pretrained pipelines of every family, trained on, whole and by LoRA: what is trained, kept, rebuilt and refused."""

import copy
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import load_file, save_file

from ldmprobe import FinetunedDiffusion, ImageData, LatentDiffusion, LoRA, Source, load_model
from ldmprobe.cli import main
from ldmprobe.data.latent_cache import LatentCache
from ldmprobe.data.latent_writer import write_cache
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.models.lazy import LazyModule
from ldmprobe.pretrained.finetune import base_fingerprint
from ldmprobe.training.checkpoint.checkpoint import Checkpoint
from tests.helpers import FLOAT32, FLOAT64, guided, refused, refuses, sd_scheduler
from tests.pipelines import TINY, conditional_unet, saved
from tests.training.test_latent_diffusion import assert_same_state, trainer

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "finetune.yaml"
SD = "StableDiffusionPipeline"


def shapes(family=SD, **options):
    """Images that the family's autoencoder makes latents of 8×8 of."""
    size = 8 if family in ("DDPMPipeline", "DDIMPipeline") else 16
    return ImageData(
        "builtin:shapes",
        {"num_images": 40, "size": size},
        **{"caption_column": "caption", "batch_size": 4, "check_rows": 1, **options},
    )


def adam(params):
    return torch.optim.AdamW(params, lr=1e-2)


def finetune(family=SD, **options):
    pretrained = str(saved(family))
    torch.manual_seed(0)
    settings = {"optimizer": adam, "ema_decay": 0.5, "validation_timesteps": 1}
    return FinetunedDiffusion(pretrained, **{**settings, **options})


def fitted(folder, module, data, max_steps=2, **options):
    """The path of its checkpoint."""
    fit = trainer(folder, max_steps=max_steps, **options)
    fit.fit(module, data)
    fit.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


def predictions(model, guidance_scale=2.0):
    z = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        condition = model.conditioning.for_samples(torch.arange(2))
        return guided(model, z, torch.tensor([10, 900]), condition, guidance_scale)


@pytest.mark.parametrize(
    "lora",
    [
        pytest.param(None, id="whole", marks=pytest.mark.reliability),
        pytest.param(LoRA(rank=2, alpha=4.0, dropout=0.1), id="lora"),
    ],
)
def test_a_resumed_finetune_with_its_text_encoder_ends_with_the_same_weights(tmp_path, lora):
    def module():
        return finetune(lora=lora, train_text_encoder=True, gradient_checkpointing=True, offset_noise=0.1)

    whole, resumed = module(), module()
    before = copy.deepcopy(whole.conditioning.state_dict())
    trainer(tmp_path / "whole", max_steps=4).fit(whole, shapes())
    path = fitted(tmp_path / "first", module(), shapes())
    trainer(tmp_path / "second", max_steps=4).fit(resumed, shapes(), ckpt_path=str(path))
    assert_same_state(whole.state_dict(), resumed.state_dict())
    changed = [
        name for name, value in resumed.conditioning.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert changed
    assert (lora is not None) == all("lora_" in name for name in changed)


ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}


def test_settings_of_the_scheduler_leave_the_pipelines_others_and_are_kept_when_it_is_resumed(tmp_path):
    def module(**options):
        return finetune(scheduler=ZERO_SNR, **options)

    whole, resumed = module(), module()
    expected = as_schedule(sd_scheduler(**ZERO_SNR))  # the pipeline's betas, and its steps_offset
    torch.testing.assert_close(whole.schedule.alpha, expected.alpha, **FLOAT64)
    assert whole.schedule.native_grid(5).timesteps.tolist() == expected.native_grid(5).timesteps.tolist()
    assert whole.schedule.scheduler.config.clip_sample is False
    trainer(tmp_path / "whole", max_steps=4).fit(whole, shapes())
    path = fitted(tmp_path / "first", module(), shapes())
    trainer(tmp_path / "second", max_steps=4).fit(resumed, shapes(), ckpt_path=str(path))
    assert_same_state(whole.state_dict(), resumed.state_dict())
    with refused(r"its scheduler\.prediction_type is v_prediction, this configuration's is"):
        trainer(tmp_path / "other", max_steps=4).fit(finetune(), shapes(), ckpt_path=str(path))


def test_latents_are_the_modes_or_drawn_from_the_posterior(tmp_path):
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    for drawn in (False, True):
        codec = finetune(sample_posterior=drawn).codec
        assert torch.equal(codec.encode(images), codec.encode(images)) != drawn
        assert codec.unscaled_kind == ("moments" if drawn else "latent")


def test_adamw_in_8_bit_keeps_a_third_of_the_state_and_is_resumed(tmp_path):
    optimizers = pytest.importorskip("bitsandbytes").optim

    def module(optimizer, **options):
        return finetune(optimizer=lambda params: optimizer(params, lr=1e-3, **options), ema_decay=None)

    def in_8_bit():
        return module(
            optimizers.AdamW8bit, min_8bit_size=512
        )  # by default it leaves layers below 4,096 weights in float32

    def state_bytes(fit):
        values = (value for of in fit.optimizers[0].state.values() for value in of.values())
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        return sum({value.data_ptr(): value.nbytes for value in tensors}.values())  # the code book is one for all

    plain, whole, second = (trainer(tmp_path / name, max_steps=4) for name in ("plain", "whole", "second"))
    plain.fit(module(torch.optim.AdamW), shapes())
    kept, resumed = in_8_bit(), in_8_bit()
    whole.fit(kept, shapes())
    print(f"{state_bytes(whole):,} bytes of state instead of {state_bytes(plain):,}")
    assert state_bytes(whole) < state_bytes(plain) / 2
    path = fitted(tmp_path / "first", in_8_bit(), shapes())
    second.fit(resumed, shapes(), ckpt_path=str(path))
    assert_same_state(kept.state_dict(), resumed.state_dict())
    torch.testing.assert_close(kept.state_dict(), plain.lightning_module.state_dict(), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("family", "trained"),
    [("StableDiffusion3Pipeline", {"text_encoder", "text_encoder_2"}), ("AuraFlowPipeline", {"text_encoder"})],
)
def test_text_encoders_without_a_format_get_updates_where_none_has_one(family, trained):
    module = finetune(family, lora=LoRA(rank=2), train_text_encoder=True)
    encoders = module.train().conditioning.encoder.encoders
    for name, encoder in encoders.items():
        asks = {"lora_" in part for part, parameter in encoder.named_parameters() if parameter.requires_grad}
        assert asks == ({True} if name in trained else set())
        assert encoder.training == (name in trained)


def test_a_finetune_of_a_finetune(tmp_path):
    first = fitted(tmp_path / "first", finetune(lora=LoRA(rank=2), prompts=["a red cat", "a dog"]), shapes())
    module = FinetunedDiffusion(str(first), optimizer=adam, lora=LoRA(rank=1), ema_decay=None, validation_timesteps=1)
    torch.testing.assert_close(predictions(module.diffusion_model()), predictions(load_model(first)))
    second = fitted(tmp_path / "second", module, shapes())
    loaded = load_model(second)
    assert (loaded.conditioning.prompts, loaded.weights) == (("a red cat", "a dog"), "raw")
    torch.testing.assert_close(predictions(loaded), predictions(module.eval().diffusion_model()), **FLOAT32)


def test_a_finetune_from_a_cache_is_resumed_without_codec_and_text_encoders(tmp_path, monkeypatch):
    prompts = ["a red cat", "a blue dog"]

    def coarse_adam(params):  # gradients that are nearly 0 differ by rounding, of which a small ε makes whole steps
        return torch.optim.AdamW(params, lr=1e-2, eps=1e-5)

    def module():
        return finetune(prompts=prompts, lora=LoRA(rank=2), optimizer=coarse_adam)

    plain = module()
    trainer(tmp_path / "plain", max_steps=4).fit(plain, shapes())
    encoded = module()
    write_cache(shapes(), encoded.codec, encoded.conditioning, encoded.network, tmp_path / "latents")

    def never(*args):
        raise AssertionError("a codec or a text encoder was loaded")

    with monkeypatch.context() as patch:
        patch.setattr(LazyModule, "network", property(never))
        path = fitted(tmp_path / "first", module(), shapes(latents=str(tmp_path / "latents")))
        resumed = module()
        resume = trainer(tmp_path / "second", max_steps=4)
        resume.fit(resumed, shapes(latents=str(tmp_path / "latents")), ckpt_path=str(path))
        guided = predictions(resumed.eval().diffusion_model())  # of a prompt and of none
    torch.testing.assert_close(resumed.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(guided, predictions(plain.eval().diffusion_model()), rtol=1e-3, atol=1e-4)

    other = finetune(prompts=["a dog", "a red cat"])
    with pytest.warns(
        UserWarning, match=r"lacks 'a dog', so that the text encoders are loaded; `ldmprobe cache .*` adds"
    ):
        trainer(tmp_path / "other", max_steps=1).fit(other, shapes(latents=str(tmp_path / "latents")))
    write_cache(shapes(), other.codec, other.conditioning, other.network, tmp_path / "latents")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            other.conditioning.kept.keys() == LatentCache(tmp_path / "latents").prompts(other.conditioning.asked).keys()
        )


def test_text_encoders_in_half_precision_stay_so_and_the_checkpoint_says_so(tmp_path):
    module = finetune("StableDiffusion3Pipeline", text_precision="bfloat16", prompts=["a red cat"])
    path = fitted(tmp_path, module, shapes("StableDiffusion3Pipeline"))
    loaded = load_model(path)
    assert loaded.conditioning.encoder.precision == module.conditioning.encoder.precision == "bfloat16"
    assert {parameter.dtype for parameter in loaded.network.parameters()} == {torch.float32}
    torch.testing.assert_close(predictions(loaded), predictions(module.eval().diffusion_model()), **FLOAT32)
    with refused("text_precision is bfloat16, which is too coarse for text encoders in"):
        finetune(text_precision="bfloat16", train_text_encoder=True)
    with refused(r"leave it out .of a checkpoint in `pretrained`: where that was trained"):
        FinetunedDiffusion(str(path), train_text_encoder=True, lora=LoRA(rank=2))


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


def test_from_the_command_line_as_the_configuration_says(tmp_path):
    given = [
        f"--model.init_args.pretrained={saved(SD)}",
        "--data.init_args.dataset=builtin:shapes",
        '--data.init_args.dataset_kwargs={"num_images": 40, "size": 16}',
        "--data.init_args={image_size: 16, caption_column: caption, random_flip: false, num_workers: 0}",
        "--model.init_args.lora={rank: 2, targets: [to_k, to_v]}",
        (
            "--trainer={accelerator: cpu, max_steps: 2, limit_val_batches: 1, num_sanity_val_steps: 0, "
            "enable_progress_bar: false}"
        ),
        "--trainer.enable_model_summary=false",
        "--trainer.callbacks=[]",
        "--trainer.callbacks+=DDIMProbe",
        "--trainer.callbacks.num_samples=8",
        "--trainer.callbacks.num_steps=2",
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.every_n_train_steps=2",
        "--trainer.callbacks.save_last=true",
    ]
    assert main(["fit", "--config", str(CONFIG), "--run_dir", str(tmp_path / "run"), *given]) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert (
        main(["sample", str(checkpoint), "--out", str(tmp_path / "samples.png"), "--num-samples=2", "--num-steps=2"])
        == 0
    )
    assert sorted(Checkpoint.read(checkpoint).lora().configs["unet"]["target_modules"]) == ["to_k", "to_v"]


# --- refused ---------------------------------------------------------------------------------------------------------


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


def test_data_of_other_classes_is_refused(tmp_path):
    module = finetune("DiTPipeline")
    with refused(r"knows 1000 classes and the data has 20, which would be taken for its first 20"):
        trainer(tmp_path).fit(module, shapes(label_column="label"))
    with refused(r"reads 'label', which the data lacks; set the data's `label_column`"):
        trainer(tmp_path).fit(module, shapes())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_text_encoder": True}, "has no text encoder; leave out `train_text_encoder`"),
        ({"prompts": ["a cat"]}, "has no text encoder; leave out `prompts`"),
        ({"offset_noise": -0.1}, "offset_noise -0.1; expected at least 0"),
        ({"input_perturbation": float("nan")}, "input_perturbation nan; expected at least 0"),
        ({"scheduler": {"rescale_betas": True}}, "DDIMScheduler has no setting 'rescale_betas'; expected some of"),
        ({"sample_posterior": True}, r"no posterior to draw from \(VQModel\); leave out `sample_posterior`"),
        ({"lora": LoRA(targets=["attn9"])}, "target 'attn9' is no linear layer"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_training(options, message):
    with refused(message):
        finetune("LDMPipeline", **options)


def test_lora_under_fsdp2_is_refused(tmp_path):
    module = finetune(lora=LoRA(rank=2))
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    module.trainer = trainer(tmp_path, devices=1, strategy=strategy)
    with refused(r"LoRA does not go with ModelParallelStrategy.*use `strategy: ddp`"):
        module.setup("fit")


def test_captions_that_are_missing_are_asked_for(tmp_path):
    with refused("set the data's `caption_column`"):
        trainer(tmp_path).fit(finetune(), shapes(caption_column=None))
