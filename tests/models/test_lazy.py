"""LazyModule and ModelFolder: networks that are used, not trained, and read when they are needed."""

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel, T5EncoderModel

from ldmprobe.models.lazy import LazyModule
from ldmprobe.models.model_folder import ModelFolder, belonging_to, variant_of
from tests.helpers import refused
from tests.pipelines import autoencoder, clip, t5

KINDS = {
    "AutoencoderKL": (AutoencoderKL, autoencoder),
    "CLIPTextModel": (CLIPTextModel, lambda: clip()[0]),
    "T5EncoderModel": (T5EncoderModel, lambda: t5()[0]),
}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    """A network, and its files."""
    cls, make = KINDS[request.param]
    torch.manual_seed(0)
    network = make().eval()
    network.save_pretrained(tmp_path)
    return network, ModelFolder(tmp_path, cls)


def in_two_parts(folder) -> None:
    autoencoder().save_pretrained(folder, max_shard_size="20KB")


class Around(nn.Module):
    """What a frozen network is part of."""

    def __init__(self, frozen: LazyModule) -> None:
        super().__init__()
        self.layer, self.frozen = nn.Linear(1, 1), frozen


def test_the_outline_is_the_network_without_weights(kind):
    network, files = kind
    outline = files.meta_module()
    assert type(outline) is type(network)
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (outline, network)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_loaded_once_and_is_the_one_that_was_saved(kind, dtype):
    network, files = kind
    frozen, state = LazyModule(files, dtype), torch.get_rng_state()
    assert frozen._network is None
    with torch.inference_mode():
        loaded = frozen.network
    assert torch.equal(torch.get_rng_state(), state)
    assert frozen.network is loaded
    for (name, ours), theirs in zip(loaded.state_dict().items(), network.to(dtype).state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
        assert ours.dtype == theirs.dtype
        assert not ours.is_inference()
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.train(False).training


def test_weights_are_read_without_loading_it(kind):
    network, files = kind
    frozen = LazyModule(files)
    read = sorted(float(value.double().sum()) for _, value in frozen.weights())
    assert frozen._network is None
    unique = {value.data_ptr(): value for value in network.state_dict().values()}  # T5's embeddings have two names
    assert read == sorted(float(value.double().sum()) for value in unique.values())


def test_it_is_no_part_of_what_is_trained_or_cast(kind):
    around = Around(LazyModule(kind[1])).train()
    frozen = around.frozen
    assert frozen.network is not None
    assert len(list(around.parameters())) == 2
    around.to(torch.bfloat16).requires_grad_(True).train()
    assert {parameter.dtype for parameter in frozen.network.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in frozen.network.parameters())
    assert not frozen.network.training


@pytest.mark.parametrize("loaded", [False, True])
def test_it_moves_with_what_it_is_part_of(kind, loaded):
    around = Around(LazyModule(kind[1]))
    if loaded:
        assert around.frozen.network is not None
    around.to("meta")  # the only other device that is everywhere
    assert around.frozen.device.type == "meta"
    assert {parameter.device.type for parameter in around.frozen.network.parameters()} == {"meta"}


def test_a_state_dict_has_its_weights_by_the_names_of_a_part(kind):
    network, files = kind
    around = Around(LazyModule(files))
    state = around.state_dict()
    assert {name for name in state if name.startswith("frozen.")} == {f"frozen.{name}" for name in network.state_dict()}
    other = Around(LazyModule(copy.deepcopy(network)))
    with torch.no_grad():
        next(other.frozen.network.parameters()).add_(1)
    other.load_state_dict(state)
    assert torch.equal(next(other.frozen.network.parameters()), next(network.parameters()))
    first = next(name for name in state if name.startswith("frozen."))
    del state[first]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{first}"'):
        other.load_state_dict(state)


def test_one_that_is_not_saved_is_not_loaded_for_it(kind):
    around = Around(LazyModule(kind[1]))
    around.frozen.saved = False
    assert set(around.state_dict()) == {"layer.weight", "layer.bias"}
    around.load_state_dict(around.state_dict())
    assert around.frozen._network is None


def test_weights_in_parts_are_read(tmp_path):
    in_two_parts(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    frozen = LazyModule(ModelFolder(tmp_path, AutoencoderKL))
    names = [name for name, _ in frozen.weights()]
    assert sorted(names) == sorted(frozen.network.state_dict())


@pytest.mark.parametrize(
    ("file", "variant"),
    [
        ("model.safetensors", None),
        ("model.fp16.safetensors", "fp16"),
        ("model-00001-of-00002.bf16.safetensors", "bf16"),
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "fp16"),
        ("pytorch_model.bin", None),
    ],
)
def test_the_variant_is_read_off_a_files_name(file, variant):
    assert variant_of(file) == variant


@pytest.mark.parametrize("variant", ["fp16", None, "bf16"])
def test_of_several_variants_the_one_that_is_asked_for_is_read(kind, variant):
    network, files = kind
    copy.deepcopy(network).half().save_pretrained(files.folder, variant="fp16")
    frozen = LazyModule(ModelFolder(files.folder, files.network_class, variant))
    first = next(network.parameters())
    expected = first.half().float() if variant == "fp16" else first  # where there is no such variant, those of none
    assert torch.equal(next(frozen.network.parameters()), expected)


# --- files that are not whole -----------------------------------------------------------------------------------------


def weights_file(files: ModelFolder) -> Path:
    (path,) = files.folder.glob("*.safetensors")
    return path


def rewrite(files: ModelFolder, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(weights_file(files))
    change(weights)
    save_file(weights, weights_file(files), {"format": "pt"})


def test_files_that_are_torn_are_refused_before_they_are_needed(kind):
    _, files = kind
    path = weights_file(files)
    path.write_bytes(path.read_bytes()[:-100])
    expected = rf"No {files.network_class.__name__} can be loaded from .*: {path.name} is torn .*\. Copy or download it again, whole\."
    with refused(expected):
        LazyModule(files)


@pytest.mark.parametrize("lost", [1, 3])
def test_what_is_missing_is_named_before_it_is_needed(kind, lost):
    """The libraries would make it up at random."""
    _, files = kind
    names = list(load_file(weights_file(files)))[:lost]
    rewrite(files, lambda weights: [weights.pop(name) for name in names])
    expected = rf"{lost} of its \d+ tensors (is|are) missing from its files, the first is ({'|'.join(map(re.escape, names))})\."
    for read in (files.meta_module, files.load):
        with refused(expected):
            read()


def test_weights_by_other_names_are_found_to_be_missing_when_they_are_loaded(kind):
    """Their shapes alone do not tell."""
    _, files = kind
    rewrite(files, lambda weights: weights.update({"its.new.name": weights.pop(next(iter(weights)))}))
    files.meta_module()
    with refused(r"1 of its \d+ tensors is missing from its files, the first is "):
        files.load()


def test_an_old_autoencoders_names_are_known(tmp_path):
    autoencoder().save_pretrained(tmp_path)
    files = ModelFolder(tmp_path, AutoencoderKL)
    expected = files.load()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for new in [name for name in weights if ".attentions." in name]:
            name = re.sub("|".join(old), lambda match: old[match[0]], new)
            weights[name] = weights.pop(new)

    rewrite(files, rename)
    assert any("query" in name for name, _ in files.weights())
    frozen = LazyModule(files).network
    for ours, theirs in zip(frozen.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_configuration_of_other_shapes_is_refused(tmp_path):
    autoencoder(channels=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"latent_channels": 4}))
    with refused(r"by its config.json .* is of shape \(.*\), in its files of \(.*\); they do not belong"):
        LazyModule(ModelFolder(tmp_path, AutoencoderKL))


@pytest.mark.parametrize("lost", ["config.json", "*.index.json", "*-00002-of-*.safetensors"])
def test_a_missing_file_is_named(tmp_path, lost):
    in_two_parts(tmp_path)
    (path,) = tmp_path.glob(lost)
    path.unlink()
    with refused(rf"its {path.name} is missing\. Copy or download it again, whole\."):
        LazyModule(ModelFolder(tmp_path, AutoencoderKL))


def test_parts_and_index_belong_together():
    of_a_variant = belonging_to("model.fp16-00002-of-00002.safetensors")
    parts = {"model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"}
    assert of_a_variant == {*parts, "model.safetensors.index.fp16.json"}
    assert belonging_to("model.fp16.safetensors") == belonging_to("config.json") == set()


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name_when_they_are_loaded(kind, value):
    _, files = kind
    name = next(iter(load_file(weights_file(files))))
    rewrite(files, lambda weights: weights[name].flatten()[-1:].fill_(value))
    frozen = LazyModule(files)
    with refused(rf"its {re.escape(name)} has values that are not finite"):
        _ = frozen.network
