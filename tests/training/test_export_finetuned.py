"""``ldmprobe export`` of a finetune: whole, as LoRA for a plain pipeline, and with the LoRA merged, always the same
images."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from ldmprobe import FinetunedDiffusion, ImageData, LoRA, load_model
from ldmprobe.cli import main
from ldmprobe.pretrained.load import load_pipeline
from tests.helpers import refuses
from tests.pipelines import saved
from tests.pretrained.test_pipeline_export import PROMPTS, assert_same_images, ours
from tests.tracking.test_model_card import images_of
from tests.training.test_latent_diffusion import stopped

LOADS_LORA = {
    "StableDiffusionPipeline": DDIMScheduler,
    "StableDiffusionXLPipeline": DDIMScheduler,
    "StableDiffusion3Pipeline": FlowMatchEulerDiscreteScheduler,
    "AuraFlowPipeline": FlowMatchEulerDiscreteScheduler,
}
"""The pipeline classes that do, and the scheduler of what is exported."""


def strongly(params):
    return torch.optim.Adam(params, lr=0.05)


def finetuned(pretrained: Path, **settings) -> Path:
    """A checkpoint after two steps on 16×16 shapes, large enough to be seen."""
    shapes = {"num_images": 32, "size": 16}
    data = ImageData("builtin:shapes", dataset_kwargs=shapes, caption_column="caption", batch_size=8, check_rows=5)
    torch.manual_seed(0)
    module = FinetunedDiffusion(
        str(pretrained), prompts=PROMPTS, optimizer=strongly, ema_decay=0.5, validation_timesteps=1, **settings
    )
    return Path(stopped(Path(), 2, module, data, limit_val_batches=0)).rename("model.ckpt")


def assert_changed(checkpoint: Path, base: Path) -> None:
    """Else the pipeline could have left the finetune out."""
    model, before = load_model(checkpoint), load_pipeline(str(base), prompts=PROMPTS)
    assert (ours(model, 4.0) - ours(before, 4.0)).abs().max() > 0.01


# In short, of Stable Diffusion XL, which has two text encoders.
LONG = ("StableDiffusionPipeline", "StableDiffusion3Pipeline", "AuraFlowPipeline")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.reliability] * (name in LONG)) for name in LOADS_LORA]
)
def test_a_plain_pipeline_with_the_lora_makes_the_same_images_and_so_does_it_merged(family):
    lora = LoRA(rank=2, alpha=6, targets=["to_q", "to_out.0", "proj_out"])
    checkpoint = finetuned(saved(family), lora=lora, train_text_encoder=family != "AuraFlowPipeline")
    assert_changed(checkpoint, saved(family))
    assert main(["export", str(checkpoint), "lora"]) == 0
    files = sorted(path.relative_to("lora").as_posix() for path in Path("lora").rglob("*") if path.is_file())
    assert files == ["README.md", "pytorch_lora_weights.safetensors", "scheduler/scheduler_config.json"]
    pipeline = DiffusionPipeline.from_pretrained(saved(family))
    pipeline.scheduler = LOADS_LORA[family].from_pretrained("lora", subfolder="scheduler")
    pipeline.load_lora_weights("lora")
    assert_same_images(pipeline, load_model(checkpoint))
    assert main(["export", str(checkpoint), "merged", "--merge"]) == 0
    assert_same_images(DiffusionPipeline.from_pretrained("merged"), load_model(checkpoint))


@pytest.mark.parametrize("family", ["StableDiffusionPipeline", "PixArtSigmaPipeline"])
def test_a_whole_finetune_is_a_whole_pipeline(family):
    checkpoint = finetuned(saved(family))
    assert_changed(checkpoint, saved(family))
    assert main(["export", str(checkpoint), "mine"]) == 0
    assert_same_images(DiffusionPipeline.from_pretrained("mine"), load_model(checkpoint))
    card = Path("mine/README.md").read_text()
    assert f"finetuned from {saved(family).name} and" in card
    texts = [path for path in Path("mine").rglob("*") if path.suffix in (".json", ".md", ".txt")]
    assert [path for path in texts if str(saved(family)) in path.read_text()] == []


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["whole", "lora"])
def test_settings_of_the_scheduler_are_in_what_is_exported(lora):
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    checkpoint = finetuned(saved("StableDiffusionPipeline"), lora=lora, scheduler=settings)
    assert main(["export", str(checkpoint), "mine"]) == 0
    pipeline = DiffusionPipeline.from_pretrained("mine" if lora is None else saved("StableDiffusionPipeline"))
    pipeline.scheduler = DDIMScheduler.from_pretrained("mine", subfolder="scheduler")
    if lora:
        pipeline.load_lora_weights("mine")
    assert settings.items() <= pipeline.scheduler.config.items()
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    assert_same_images(pipeline, load_model(checkpoint))


@pytest.mark.parametrize(
    ("family", "component"), [("PixArtSigmaPipeline", "transformer"), ("AuraFlowPipeline", "text_encoder")]
)
def test_where_diffusers_loads_no_lora_it_is_merged_or_refused(family, component, capsys):
    checkpoint = finetuned(saved(family), lora=LoRA(rank=2), train_text_encoder=True)
    error = refuses(capsys, ["export", str(checkpoint), "lora"])
    assert f"diffusers has no LoRA format for the {component} of {family}" in error
    assert not Path("lora").exists()
    assert main(["export", str(checkpoint), "merged", "--merge"]) == 0
    assert_same_images(DiffusionPipeline.from_pretrained("merged"), load_model(checkpoint))


def test_the_code_of_a_loras_card_runs():
    checkpoint = finetuned(saved("StableDiffusionPipeline"), lora=LoRA(rank=2))
    assert main(["export", str(checkpoint), "lora"]) == 0
    card, base = Path("lora/README.md").read_text(), saved("StableDiffusionPipeline")
    assert str(base.parent) not in card
    assert f"`path/to/{base.name}` stands for the pipeline that it was finetuned from" in card
    assert len(images_of(card.replace(f"path/to/{base.name}", str(base)))) == 4


def test_a_lora_is_exported_at_the_strength_that_is_asked_for(capsys):
    finetuned(saved("StableDiffusionPipeline"), lora=LoRA(rank=2))
    assert (
        main(["export", "model.ckpt", "whole"]) == main(["export", "model.ckpt", "half", "--lora-strength", "0.5"]) == 0
    )
    whole, half = (load_file(f"{folder}/pytorch_lora_weights.safetensors") for folder in ("whole", "half"))
    assert all(torch.equal(half[name], value * (0.5 if "lora_B" in name else 1)) for name, value in whole.items())
    assert any(bool(value.any()) for name, value in whole.items() if "lora_B" in name)
    assert "LoRA at strength 0.5" in Path("half/README.md").read_text()
    assert main(["export", str(saved("StableDiffusionPipeline")), "none", "--lora-strength", "0.5"]) == 2
