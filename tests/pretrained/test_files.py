"""The files of a pipeline: components, weights and their variants, and what is said where they are missing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline
from safetensors.torch import load_file, save_file

from ldmprobe.pretrained.files import check_files
from ldmprobe.pretrained.load import load_pipeline
from ldmprobe.pretrained.source import Source
from tests.helpers import refused, tiny_unet
from tests.pipelines import saved, tiny

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def named(component, entry):
    """Have model_index.json ask for another component."""

    def change(folder):
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {component: entry}))

    return change


def without(part):
    def change(folder):
        (shutil.rmtree if (folder / part).is_dir() else Path.unlink)(folder / part)

    return change


def without_a_tensor(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["conv_in.bias"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def cut_off(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])


SD, XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"


@pytest.mark.parametrize(
    ("family", "change", "told"),
    [
        (
            SD,
            named("unet", ["diffusers", "MyUNet"]),
            r"asks for diffusers.MyUNet as its unet, which diffusers [\d.]+.*, installed here, lacks",
        ),
        (SD, named("unet", ["diffusers", "utils"]), r"asks for diffusers.utils as its unet, which diffusers .* lacks"),
        (SD, named("tokenizer", ["transformers", "MyTokenizer"]), "asks for transformers.MyTokenizer as its tokenizer, which transformers"),
        (
            SD,
            named("unet", ["unet.mine", "MyUNet"]),
            "asks for unet.mine.MyUNet as its unet; expected a class of diffusers or transformers",
        ),
        (SD, named("vae", [None, None]), "is without its vae .null in model_index.json., which a StableDiffusionPipeline needs"),
        (SD, without("unet"), "lacks its unet: .* there is no folder 'unet'. Copy or download"),
        (SD, without("scheduler"), "lacks its scheduler: .* there is no folder 'scheduler'. Copy or download"),
        (XL, without("text_encoder_2"), "lacks its text_encoder_2: model_index.json names a CLIPTextModelWithProjection"),
        (SD, without(WEIGHTS), r"The unet in .* has no weights \(\*.safetensors\)"),
        (SD, without_a_tensor, r"1 of its \d+ tensors is missing .*, the first is conv_in.bias\."),
        (SD, cut_off, r"No UNet2DConditionModel .*/unet: .* is torn .*\. Copy or download it"),
        (SD, without("model_index.json"), "the folder has no readable model_index.json. Give the folder that"),
    ],
)  # fmt: skip
def test_what_a_pipeline_lacks_is_named(tmp_path, family, change, told):
    shutil.copytree(saved(family), tmp_path / "changed")
    change(tmp_path / "changed")
    with refused(told):
        load_pipeline(str(tmp_path / "changed"))


def test_a_component_is_no_pipeline():
    with refused(r"no readable model_index.json. Give the folder .* not one of its components"):
        load_pipeline(str(saved(SD) / "unet"))


def test_pickled_weights_are_refused_with_how_to_convert_them(tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with refused(r"The unet in .* only as diffusion_pytorch_model.bin, a pickle"):
        load_pipeline(str(tmp_path / "pickled"))
    # as the message says:
    DiffusionPipeline.from_pretrained(tmp_path / "pickled", use_safetensors=False).save_pretrained(tmp_path / "safe")
    load_pipeline(str(tmp_path / "safe"))


def test_a_variant_is_loaded_in_float32_or_refused_with_those_that_are_there(tmp_path):
    pipeline, half = tiny(SD), str(tmp_path / "half")
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.half()
    pipeline.save_pretrained(half, variant="fp16")
    model = load_pipeline(Source(half, variant="fp16"))
    assert {parameter.dtype for module in model.modules for parameter in module.parameters()} == {torch.float32}
    whole = load_pipeline(str(saved(SD)))
    for ours, theirs in zip(model.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())
    for variant, what in ((None, "without a variant"), ("bf16", "of a variant 'bf16'")):
        with refused(rf"The text_encoder in .* has no weights {what}; set `variant: fp16`\."):
            load_pipeline(Source(half, variant=variant))
    # A component without the variant is read without it, as diffusers does: of some only the large ones have variants.
    shutil.copytree(saved(SD) / "vae", tmp_path / "half" / "vae", dirs_exist_ok=True)
    (tmp_path / "half" / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    load_pipeline(Source(half, variant="fp16"))
    with refused(r"has no weights of a variant 'bf16'; set `variant: fp16`\."):
        load_pipeline(Source(half, variant="bf16"))
    with refused(r"has no weights of a variant 'fp16'; leave `variant` out\."):
        load_pipeline(Source(str(saved(SD)), variant="fp16"))


def test_weights_in_parts_are_found_with_their_variants():
    files = [
        "model-00001-of-00002.safetensors",
        "model.fp16-00001-of-00002.safetensors",
        "model-00001-of-00002.bf16.safetensors",
    ]
    index = {"_class_name": "StableDiffusion3Pipeline", "text_encoder_3": ["transformers", "T5EncoderModel"]}
    for file, variant in zip(files, (None, "fp16", "bf16"), strict=True):
        check_files("sd3", index, [f"text_encoder_3/{file}"], variant)
        with refused("sd3 has no weights of a variant 'fp8'"):
            check_files("sd3", index, [f"text_encoder_3/{file}"], "fp8")
