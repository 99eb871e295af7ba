"""load_pipeline: a diffusers pipeline folder, taken apart."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, DiffusionPipeline

from ldmprobe.cli import main
from ldmprobe.data.images import ImageData
from ldmprobe.diffusion.samplers import Denoise
from ldmprobe.inference import sample_images
from ldmprobe.models.guidance import ClassifierFreeGuidance
from ldmprobe.pretrained.load import PretrainedText, load_pipeline
from ldmprobe.pretrained.source import Source
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model
from ldmprobe.training.finetuning import FinetunedDiffusion
from tests.helpers import FLOAT32, WHOLE_PATH, refused, sd_scheduler, tiny_unet
from tests.pipelines import autoencoder, saved, tiny
from tests.training.test_latent_diffusion import trainer


@pytest.fixture
def folder(tmp_path):
    DDPMPipeline(tiny_unet(channels=3), DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path)
    return tmp_path


def test_the_model_is_the_one_that_was_saved(folder):
    state = torch.get_rng_state()
    model = load_pipeline(str(folder))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in model.network.parameters())
    pipeline = DDPMPipeline.from_pretrained(folder)
    z, t = torch.randn(2, 3, 8, 8), torch.tensor([10, 700])
    with torch.no_grad():
        torch.testing.assert_close(model.predict(z, t, {}), pipeline.unet(z, t).sample, **FLOAT32)
    assert model.latent_shape == (3, 8, 8)
    assert model.schedule.prediction.name == "v_prediction"
    torch.testing.assert_close(model.schedule.alpha**2, DDPMScheduler().alphas_cumprod.double())
    assert model.codec.autoencoder is None
    assert not model.network.training


def test_a_rectangular_model_keeps_its_shape(tmp_path):
    DDIMPipeline(tiny_unet(channels=1, size=(4, 8)), sd_scheduler()).save_pretrained(tmp_path)
    assert load_pipeline(str(tmp_path)).latent_shape == (1, 4, 8)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("FluxPipeline", r" \(its latents are packed into tokens, .*\); supported are DDPMPipeline, .*, AuraFlowPipeline\."),
        ("NinePipeline", "; supported are DDPMPipeline"),
    ],
)  # fmt: skip
def test_another_family_is_refused_by_name(folder, family, why):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": family}))
    with refused(f"is a {family}, which is not supported{why}"):
        load_pipeline(str(folder))


def test_a_class_conditional_u_net_comes_with_its_classes(tmp_path):
    DDPMPipeline(tiny_unet(channels=3, num_class_embeds=4), DDPMScheduler()).save_pretrained(tmp_path)
    model = load_pipeline(str(tmp_path))
    ids, z = torch.arange(4), torch.randn(4, 3, 8, 8)
    assert model.conditioning.for_samples(ids)["class_labels"].tolist() == [0, 1, 2, 0]
    predict = model.predictor(model.conditioning.for_samples(ids), 4, ClassifierFreeGuidance(3.0))
    with torch.no_grad():
        assert predict(z, Denoise(0.6, 0.8, 500)).shape == z.shape


def test_a_folder_has_no_revisions(folder):
    with refused(r"`revision` is of the hub, but .* is a folder here; leave it out"):
        load_pipeline(Source(str(folder), revision="main"))


@pytest.mark.parametrize(
    ("there", "given", "told"),
    [
        ("unet.safetensors", "unet.safetensors", "it is a single file. Give the folder of the whole pipeline"),
        ("pytorch_lora_weights.safetensors", "", "it has a LoRA alone, .* `ldmprobe export CHECKPOINT DIR --merge`"),
        ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.safetensors", "it has a LoRA alone"),
        ("checkpoints/last.ckpt", "", "it is the folder of a run. Give one of its checkpoints, such as .*/last.ckpt"),
        ("checkpoints/last.ckpt", "checkpoints/last.ckpt", "it is a checkpoint. Write a pipeline of it, `ldmprobe export"),
    ],
)  # fmt: skip
def test_what_is_no_pipeline_is_refused_with_what_to_give_instead(tmp_path, there, given, told):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    with refused(told):
        load_pipeline(str(tmp_path / given))


def test_an_autoencoder_of_another_network_is_refused(tmp_path):
    shutil.copytree(saved("StableDiffusionPipeline"), tmp_path / "other")
    autoencoder(channels=4).save_pretrained(tmp_path / "other" / "vae")
    with refused("The unet takes latents of 2 channels, those of the vae have 4; they do not belong together"):
        load_pipeline(str(tmp_path / "other"))


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory):
    """Stable Diffusion 3 as it is often used: saved without its largest text encoder."""
    pipeline, folder = tiny("StableDiffusion3Pipeline"), tmp_path_factory.mktemp("sd3")
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipeline.save_pretrained(folder)
    return folder


def test_stable_diffusion_3_without_t5_is_finetuned_exported_and_probed(without_t5, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = FinetunedDiffusion(str(without_t5), prompts=["a red cat"], ema_decay=None)
    fit = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    shapes = {"num_images": 20, "size": 16}
    fit.fit(module, ImageData("builtin:shapes", shapes, caption_column="caption", batch_size=4, check_rows=1))
    fit.save_checkpoint("last.ckpt")
    assert main(["export", "last.ckpt", "exported"]) == 0
    card = (tmp_path / "exported" / "README.md").read_text()
    assert 'from_pretrained("exported", text_encoder_3=None, tokenizer_3=None)' in card
    DiffusionPipeline.from_pretrained("exported", text_encoder_3=None, tokenizer_3=None)
    images = [
        sample_images(load_model(name, "cpu", ["a red cat"]), Sampling(2, 2, guidance=ClassifierFreeGuidance(2.0)))
        for name in ("last.ckpt", "exported", str(without_t5))
    ]
    torch.testing.assert_close(images[0], images[1], **WHOLE_PATH)
    assert not torch.equal(images[0], images[2])
    few = ["--num-samples", "8", "--num-steps", "2", "--device", "cpu"]
    assert main(["probe", "exported", "--out", "probed", *few]) == 0


def test_text_encoders_without_t5_are_of_no_use_to_another_network(without_t5):
    with refused("is without its text_encoder_3, for which only its own network has a substi"):
        PretrainedText(str(without_t5))
