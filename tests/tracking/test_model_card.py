"""The card of an exported pipeline: what it says is so, and its code runs."""

import io
import re
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldmprobe import ProbeRecord, Source
from ldmprobe.pretrained.export import as_pipeline
from ldmprobe.pretrained.load import load_pipeline
from ldmprobe.pretrained.lora import LoRAWeights
from ldmprobe.tracking.model_card import write_model_card
from tests.pipelines import saved


def images_of(card: str) -> list:
    """What the card's code makes in the working directory."""
    Path("use.py").write_text(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].replace("_steps=50", "_steps=2"))
    return runpy.run_path("use.py")["images"]


FAMILIES = ["DDIMPipeline", "LDMPipeline", "DiTPipeline", "StableDiffusionPipeline", "PixArtSigmaPipeline", "AuraFlowPipeline"]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_its_code_runs_and_makes_images_of_the_trained_size(family):
    model = load_pipeline(str(saved(family)), prompts=["", "a 'red' cat"])
    pipeline = as_pipeline(model)
    pipeline.save_pretrained("mine")
    write_model_card(Path("mine"), "mine", pipeline, model, [])
    card = Path("mine/README.md").read_text()
    images = images_of(card)
    assert len(images) == (2 if family == "DiTPipeline" else 4)
    assert images[0].size == model.codec.decode(torch.zeros(1, *model.latent_shape)).shape[:1:-1]
    text = model.latent_shape[0] == 2 and family not in ("LDMPipeline", "DiTPipeline")
    assert ("pipeline_tag: text-to-image" in card, "\"a 'red' cat\"" in card, "| Text | " in card) == (text,) * 3


HUB = Source("me/sd", revision="v2")
LORA = LoRAWeights(None, {"unet": {"A": torch.zeros(2, 4)}}, {"unet": {"r": 2, "lora_alpha": 6}})
ORIGINS = {
    "scratch": (
        None,
        None,
        ["- diffusers:StableDiffusionPipeline", "A StableDiffusionPipeline of diffusers, trained and"],
    ),
    "hub": (
        HUB,
        None,
        ["base_model: me/sd\nbase_model_relation: finetune\n", "of diffusers, finetuned from me/sd and"],
    ),
    "LoRA": (
        HUB,
        LORA,
        [
            "base_model_relation: adapter\n",
            "- lora\n",
            "of diffusers, finetuned from me/sd and",
            '("me/sd", revision="v2")',
            "| LoRA | unet: rank 2, α 6, 8 parameters |",
        ],
    ),
    "LoRA of a checkpoint": (
        Source("a.ckpt"),
        LORA,
        ["`ldmprobe export path/to/a.ckpt base --merge`", 'from_pretrained("base")', 'load_lora_weights("mine")'],
    ),
    "LoRA of a folder": (
        Source("/home/me/sd"),
        LORA,
        ["of diffusers, finetuned from sd and", "`path/to/sd` stands for the", 'from_pretrained("path/to/sd")'],
    ),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_it_says_where_it_comes_from(origin, tmp_path):
    base, lora, lines = ORIGINS[origin]
    model = load_pipeline(str(saved("StableDiffusionPipeline")))
    write_model_card(tmp_path, "mine", as_pipeline(model), model, [], base, lora)
    card = (tmp_path / "README.md").read_text()
    for line in lines:
        assert line in card
    assert ("base_model" in card) == (base is HUB)
    assert "/home" not in card
    assert re.search(r"\| Text \| CLIPTextModel, [\d,]{4,} parameters \|", card)


def test_its_samples_are_told_with_prompts_and_guidance(tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "png")
    provenance = {"prompts": ["a *red*\n[cat] `x`", ""], "guidance": "guidance scale 5.0"}
    record = ProbeRecord("ddim", 300, images={"samples": [png.getvalue()] * 4}, provenance=provenance)
    model = load_pipeline(str(saved("StableDiffusionPipeline")))
    model.trained_steps = 300
    write_model_card(tmp_path, "mine", as_pipeline(model), model, [record])
    caption = "Samples of `a *red* [cat] 'x'`, no prompt in turn, guidance scale 5.0 (step 300)"
    assert f"![{caption}](figures/samples.png)\n\n*{caption}*" in (tmp_path / "README.md").read_text()
