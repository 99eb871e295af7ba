"""Pretrained pipelines of every family, trained on, whole and by LoRA: what is trained, kept, rebuilt and refused."""

import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from ldmprobe import FinetunedDiffusion, ImageData, LoRA, load_model
from ldmprobe.cli import main
from ldmprobe.data.latent_cache import LatentCache
from ldmprobe.data.latent_writer import write_cache
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.models.lazy import LazyModule
from ldmprobe.training.checkpoint.checkpoint import Checkpoint
from tests.helpers import FLOAT32, FLOAT64, guided, refused, sd_scheduler
from tests.pipelines import saved
from tests.training.test_latent_diffusion import assert_same_state, stopped, trainer

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


def fitted(folder, module, data, max_steps=2):
    return Path(stopped(folder, max_steps, module, data))


def whole_and_resumed(tmp_path, make):
    """Two finetunes of four steps, the second stopped after two and gone on with, and the checkpoint between."""
    whole, resumed = make(), make()
    trainer(tmp_path / "whole", max_steps=4).fit(whole, shapes())
    path = fitted(tmp_path / "first", make(), shapes())
    trainer(tmp_path / "second", max_steps=4).fit(resumed, shapes(), ckpt_path=str(path))
    return whole, resumed, path


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

    before = module().conditioning.state_dict()
    whole, resumed, _ = whole_and_resumed(tmp_path, module)
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

    whole, resumed, path = whole_and_resumed(tmp_path, module)
    expected = as_schedule(sd_scheduler(**ZERO_SNR))  # the pipeline's betas, and its steps_offset
    torch.testing.assert_close(whole.schedule.alpha, expected.alpha, **FLOAT64)
    assert whole.schedule.native_grid(5).timesteps.tolist() == expected.native_grid(5).timesteps.tolist()
    assert whole.schedule.scheduler.config.clip_sample is False
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
