"""load_pipeline: a diffusers pipeline folder, taken apart."""

import json
import re
import shutil
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import lightning as L
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, DiffusionPipeline
from huggingface_hub import close_session
from safetensors.torch import load_file, save_file

from ldmprobe.cli import main
from ldmprobe.data.images import ImageData
from ldmprobe.diffusion.samplers import Denoise
from ldmprobe.errors import ConfigurationError
from ldmprobe.inference import sample_images
from ldmprobe.models.conditioning import TextConditioning
from ldmprobe.models.families import FAMILIES
from ldmprobe.models.guidance import ClassifierFreeGuidance
from ldmprobe.models.model_folder import ModelFolder
from ldmprobe.pretrained.files import check_files
from ldmprobe.pretrained.load import PretrainedText, load_pipeline
from ldmprobe.pretrained.source import Source
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model
from ldmprobe.training.finetuning import FinetunedDiffusion
from tests.helpers import FLOAT32, WHOLE_PATH, refused, sd_scheduler, tiny_unet
from tests.pipelines import autoencoder, saved, tiny


@pytest.fixture
def folder(tmp_path):
    DDPMPipeline(tiny_unet(channels=3), DDPMScheduler(prediction_type="v_prediction")).save_pretrained(
        tmp_path / "ddpm"
    )
    return tmp_path / "ddpm"


def test_the_model_is_the_one_that_was_saved(folder):
    model = load_pipeline(str(folder))
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
        (
            "FluxPipeline",
            r" \(its latents are packed into tokens, .*\); supported are DDPMPipeline, .*, AuraFlowPipeline\.",
        ),
        ("NinePipeline", "; supported are DDPMPipeline"),
    ],
)
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
    with torch.no_grad():
        prediction = model.predictor(model.conditioning.for_samples(ids), 4, ClassifierFreeGuidance(3.0))(
            z, Denoise(0.6, 0.8, 500)
        )
    assert prediction.shape == z.shape


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with refused(r"the folder has no readable model_index.json. Give the folder that"):
        load_pipeline(str(tmp_path))


def test_a_component_is_no_pipeline(folder):
    with refused(r"no readable model_index.json. Give the folder .* not one of its components"):
        load_pipeline(str(folder / "unet"))


@pytest.mark.parametrize("name", ["/no/such/folder/at/all", "runs/digits/nothing", "./nothing", "not a name"])
def test_a_folder_that_is_nowhere_is_refused(name):
    with refused(r"there is no such folder here, and it is no hub id \(`owner/name`\)"):
        load_pipeline(name)


def test_a_mistyped_folder_is_told_without_asking_the_hub(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with refused(r"there is a folder 'models' here, but no 'mine' in it\. If you mean the"):
        load_pipeline("models/mine")
    with refused("not in the hub's cache"):  # as the message says
        load_pipeline(Source("models/mine", revision="main"))


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
        (
            "checkpoints/last.ckpt",
            "checkpoints/last.ckpt",
            "it is a checkpoint. Write a pipeline of it, `ldmprobe export",
        ),
    ],
)
def test_what_is_no_pipeline_is_refused_with_what_to_give_instead(tmp_path, there, given, told):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    with refused(told):
        load_pipeline(str(tmp_path / given))


def test_a_hub_that_does_not_answer_is_told_by_the_connections_error(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free again when it is asked
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its attempts
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    close_session()
    try:
        with refused(r"and the hub could not be reached \(.*refused\)"):
            load_pipeline("no/such-pipeline")
    finally:
        close_session()


@pytest.mark.parametrize("source", [{}, {"revision": "refs/pr/1"}, {"local_files_only": True}])
def test_a_hub_id_out_of_reach_is_refused_with_how_to_get_it(source):
    at = f" --revision {source['revision']}" if "revision" in source else ""
    why = "`local_files_only`" if "local_files_only" in source else "HF_HUB_OFFLINE is set"
    expected = rf"not in the hub's cache .* was not to be asked \({why}\).*run `hf download no/such-pipeline{at}`, or with `--local-dir DIR`"
    with refused(expected):
        load_pipeline(Source("no/such-pipeline", **source))


class Hub(BaseHTTPRequestHandler):
    """A hub that refuses, as the real one does."""

    def do_GET(self) -> None:
        code, status = "RepoNotFound", 404
        if "/old/" in self.path:
            code = "RevisionNotFound"
        if "/gated/" in self.path:  # whose list of files is public
            code, status = ("GatedRepo", 403) if "/resolve/" in self.path else ("", 200)
        answer = b'[{"type": "file", "path": "model_index.json", "size": 1, "oid": "0"}]' if status == 200 else b"{}"
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer if self.command == "GET" else b"")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "gated/pipeline",
            "access to it is gated. Accept its terms on https://huggingface.co/gated/pipeline, then log in by `hf auth",
        ),
        ("missing/pipeline", "no repository of this name, or a private one: check the name"),
        (
            "old/pipeline",
            "the hub's old/pipeline has no revision 'v9'; leave `revision` out, or name a branch, tag or commit",
        ),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_to_do(name, text, tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    for constant, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path),
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{constant}", value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    close_session()
    try:
        with refused(re.escape(text)):
            load_pipeline(Source(name, revision="v9"))
    finally:
        server.shutdown()
        close_session()


def test_a_cached_hub_pipeline_is_read_without_the_hub(tmp_path, monkeypatch):
    """In the layout of the hub's cache: a snapshot folder for each commit, and what each branch points to."""
    commit = "0" * 40
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(saved("DDIMPipeline"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_pipeline("someone/tiny").latent_shape == (3, 8, 8)
    assert load_pipeline(Source("someone/tiny", local_files_only=True, revision="main")).latent_shape == (3, 8, 8)
    shutil.rmtree(repository / "snapshots" / commit / "unet")
    with refused("someone/tiny lacks its unet"):
        load_pipeline("someone/tiny")


@pytest.fixture
def changed(tmp_path):
    """A copy of Stable Diffusion, to be changed; and its model_index.json."""
    folder = tmp_path / "changed"
    shutil.copytree(saved("StableDiffusionPipeline"), folder)
    return folder, json.loads((folder / "model_index.json").read_text())


@pytest.mark.parametrize(
    ("component", "entry", "told"),
    [
        (
            "unet",
            ["diffusers", "MyUNet"],
            r"asks for diffusers.MyUNet as its unet, which diffusers [\d.]+.*, installed here, lacks",
        ),
        (
            "tokenizer",
            ["transformers", "MyTokenizer"],
            "asks for transformers.MyTokenizer as its tokenizer, which transformers",
        ),
        (
            "unet",
            ["unet.mine", "MyUNet"],
            "asks for unet.mine.MyUNet as its unet; expected a class of diffusers or transformers",
        ),
        ("vae", [None, None], "is without its vae .null in model_index.json., which a StableDiffusionPipeline needs"),
    ],
)
def test_components_that_cannot_be_had_are_refused(changed, component, entry, told):
    folder, index = changed
    (folder / "model_index.json").write_text(json.dumps(index | {component: entry}))
    with refused(told):
        load_pipeline(str(folder))


def test_an_autoencoder_of_another_network_is_refused(changed):
    autoencoder(channels=4).save_pretrained(changed[0] / "vae")
    with pytest.raises(
        ConfigurationError,
        match="The unet takes latents of 2 channels, those of the vae have 4; they do not belong together",
    ):
        load_pipeline(str(changed[0]))


def test_a_network_that_lacks_weights_is_refused(changed):
    path = changed[0] / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.bias"]
    save_file(weights, path, {"format": "pt"})
    with refused(r"1 of its \d+ tensors is missing .*, the first is conv_in.bias\."):
        load_pipeline(str(changed[0]))


def test_loading_draws_no_random_numbers_and_leaves_the_network_to_be_trained(folder):
    state = torch.get_rng_state()
    model = load_pipeline(str(folder))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in model.network.parameters())


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
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(max_steps=1, accelerator="cpu", limit_val_batches=0, **quiet)
    shapes = {"num_images": 20, "size": 16}
    trainer.fit(module, ImageData("builtin:shapes", shapes, caption_column="caption", batch_size=4, check_rows=1))
    trainer.save_checkpoint("last.ckpt")
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
    assert (
        main(["probe", "exported", "--out", "probed", "--num-samples", "8", "--num-steps", "2", "--device", "cpu"]) == 0
    )


def test_text_encoders_without_t5_are_of_no_use_to_another_network(without_t5):
    with refused("is without its text_encoder_3, for which only its own network has a substi"):
        PretrainedText(str(without_t5))


@pytest.mark.parametrize("component", ["unet", "scheduler"])
def test_a_missing_component_is_named(folder, component):
    shutil.rmtree(folder / component)
    with refused(f"lacks its {component}: .* there is no folder '{component}'. Copy or download"):
        load_pipeline(str(folder))


def test_a_missing_text_encoder_is_named(tmp_path):
    shutil.copytree(saved("StableDiffusionXLPipeline"), tmp_path / "xl")
    shutil.rmtree(tmp_path / "xl" / "text_encoder_2")
    with refused(r"lacks its text_encoder_2: model_index.json names a CLIPTextModelWithProjection"):
        load_pipeline(str(tmp_path / "xl"))


def test_missing_weights_are_told(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with refused(r"The unet in .* has no weights \(\*.safetensors\)"):
        load_pipeline(str(folder))


def test_pickled_weights_are_refused_with_how_to_convert_them(tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with refused(r"The unet in .* only as diffusion_pytorch_model.bin, a pickle"):
        load_pipeline(str(tmp_path / "pickled"))
    # as the message says:
    DiffusionPipeline.from_pretrained(tmp_path / "pickled", use_safetensors=False).save_pretrained(tmp_path / "safe")
    load_pipeline(str(tmp_path / "safe"))


def test_broken_weights_are_refused(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with refused(r"No UNet2DModel .*/unet: .* is torn .*\. Copy or download it"):
        load_pipeline(str(folder))


@pytest.fixture
def half(tmp_path):
    """Stable Diffusion with weights in half precision only."""
    pipeline = tiny("StableDiffusionPipeline")
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.half()
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    return tmp_path / "half"


def test_a_half_precision_variant_is_loaded_in_float32(half):
    model = load_pipeline(Source(str(half), variant="fp16"))
    assert {parameter.dtype for module in model.modules for parameter in module.parameters()} == {torch.float32}
    whole = load_pipeline(str(saved("StableDiffusionPipeline")))
    for ours, theirs in zip(model.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())


@pytest.mark.parametrize("variant", [None, "bf16"])
def test_a_variant_that_is_not_there_is_refused_with_those_that_are(half, variant):
    what = "of a variant 'bf16'" if variant else "without a variant"
    with refused(rf"The text_encoder in .* has no weights {what}; set `variant: fp16`\."):
        load_pipeline(Source(str(half), variant=variant))


def test_a_component_without_the_variant_is_read_without_it(half):
    """As diffusers does: of some pipelines only the large components have variants."""
    shutil.copytree(saved("StableDiffusionPipeline") / "vae", half / "vae", dirs_exist_ok=True)
    (half / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    load_pipeline(Source(str(half), variant="fp16"))
    with refused(r"has no weights of a variant 'bf16'; set `variant: fp16`\."):
        load_pipeline(Source(str(half), variant="bf16"))


def test_a_variant_of_weights_without_one_is_refused(folder):
    with refused(r"ddpm has no weights of a variant 'fp16'; leave `variant` out\."):
        load_pipeline(Source(str(folder), variant="fp16"))


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


# --- text encoders for a network of one's own
# ----------------------------------------------------------------------------


def test_frozen_text_encoders_are_read_from_yaml(tmp_path):
    import yaml
    from jsonargparse import ArgumentParser

    where = str(saved("PixArtAlphaPipeline"))
    config = {"encoder": {"class_path": "ldmprobe.PretrainedText", "init_args": {"pipeline": where}}}
    parser = ArgumentParser()
    parser.add_class_arguments(TextConditioning, "text")
    text = yaml.safe_dump({"text": config | {"prompts": ["a red cat"]}})
    conditioning = parser.instantiate_classes(parser.parse_string(text)).text
    whole = load_pipeline(where, prompts=["a red cat"])
    ids = torch.arange(2)
    torch.testing.assert_close(conditioning.for_samples(ids), whole.conditioning.for_samples(ids))
    assert list(conditioning.parameters()) == []  # frozen, and no network or autoencoder besides
    assert {name.split(".")[1] for name in conditioning.state_dict()} == {"encoders"}


def test_text_encoders_and_autoencoder_are_read_when_they_are_needed(monkeypatch):
    read: list[str] = []
    load = ModelFolder.load
    monkeypatch.setattr(ModelFolder, "load", lambda self, *dtype: read.append(self.folder.name) or load(self, *dtype))
    model = load_pipeline(str(saved("StableDiffusionXLPipeline")))
    model.codec.latent_shape((3, 16, 16))
    assert model.conditioning.encoder.description["encoders"]
    assert read == ["unet"]
    model.conditioning.for_samples(torch.arange(2))
    assert read == ["unet", "text_encoder", "text_encoder_2"]
    model.codec.decode(torch.zeros(1, *model.latent_shape))
    model.conditioning.for_samples(torch.arange(2))
    assert read == ["unet", "text_encoder", "text_encoder_2", "vae"]


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.text and not family.text_of])
def test_text_encoders_in_half_precision_say_nearly_the_same_in_float32(family):
    whole = load_pipeline(str(saved(family)), ["a red cat"]).conditioning
    half = load_pipeline(Source(str(saved(family)), text_precision="bfloat16"), ["a red cat"]).conditioning
    ids = torch.arange(1)
    expected, condition = whole.for_samples(ids), half.for_samples(ids)
    networks = [encoder.network for encoder in half.encoder.encoders.values()]
    assert {parameter.dtype for network in networks for parameter in network.parameters()} == {torch.bfloat16}
    assert (whole.encoder.precision, half.encoder.precision) == ("float32", "bfloat16")
    for name, value in condition.items():
        assert value.dtype == expected[name].dtype
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=0.05)
    assert not torch.equal(condition["encoder_hidden_states"], expected["encoder_hidden_states"])


def test_a_pipeline_without_text_has_no_text_encoder():
    with refused("is a DiTPipeline, which has no text encoder"):
        PretrainedText(str(saved("DiTPipeline")))
