"""Frozen and NetworkFiles: networks that are used, not trained, and read when they are needed."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextModel, T5EncoderModel

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.frozen import Frozen, NetworkFiles, variant_of
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
    return network, NetworkFiles(tmp_path, cls)


def in_two_parts(folder) -> None:
    autoencoder().save_pretrained(folder, max_shard_size="20KB")


class Around(nn.Module):
    """What a frozen network is part of."""

    def __init__(self, frozen: Frozen) -> None:
        super().__init__()
        self.layer, self.frozen = nn.Linear(1, 1), frozen


def test_the_outline_is_the_network_without_weights(kind):
    network, files = kind
    outline = files.outline()
    assert type(outline) is type(network)
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (outline, network)]
    assert shapes[0] == shapes[1]


def test_it_is_loaded_once_and_is_the_one_that_was_saved(kind):
    network, files = kind
    frozen, state = Frozen(files), torch.get_rng_state()
    assert not frozen.loaded
    with torch.inference_mode():
        loaded = frozen.network
    assert torch.equal(torch.get_rng_state(), state)
    assert frozen.network is loaded
    for (name, ours), theirs in zip(loaded.state_dict().items(), network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
        assert not ours.is_inference()
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.train(False).training


def test_weights_are_read_without_loading_it(kind):
    network, files = kind
    frozen = Frozen(files)
    read = sorted(float(value.double().sum()) for _, value in frozen.weights())
    assert not frozen.loaded
    unique = {value.data_ptr(): value for value in network.state_dict().values()}  # T5's embeddings have two names
    assert read == sorted(float(value.double().sum()) for value in unique.values())


def test_it_is_no_part_of_what_is_trained_or_cast(kind):
    around = Around(Frozen(kind[1])).train()
    frozen = around.frozen
    assert frozen.network is not None
    assert len(list(around.parameters())) == 2
    around.to(torch.bfloat16).requires_grad_(True).train()
    assert {parameter.dtype for parameter in frozen.network.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in frozen.network.parameters())
    assert not frozen.network.training


@pytest.mark.parametrize("loaded", [False, True])
def test_it_moves_with_what_it_is_part_of(kind, loaded):
    around = Around(Frozen(kind[1]))
    if loaded:
        assert around.frozen.network is not None
    around.to("meta")  # the only other device that is everywhere
    assert around.frozen.device.type == "meta"
    assert {parameter.device.type for parameter in around.frozen.network.parameters()} == {"meta"}


def test_a_state_dict_has_its_weights_by_the_names_of_a_part(kind):
    network, files = kind
    around = Around(Frozen(files))
    state = around.state_dict()
    assert {name for name in state if name.startswith("frozen.")} == {f"frozen.{name}" for name in network.state_dict()}
    other = Around(Frozen(copy.deepcopy(network)))
    with torch.no_grad():
        next(other.frozen.network.parameters()).add_(1)
    other.load_state_dict(state)
    assert torch.equal(next(other.frozen.network.parameters()), next(network.parameters()))
    first = next(name for name in state if name.startswith("frozen."))
    del state[first]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{first}"'):
        other.load_state_dict(state)


def test_one_that_is_not_saved_is_not_loaded_for_it(kind):
    around = Around(Frozen(kind[1]))
    around.frozen.saved = False
    assert set(around.state_dict()) == {"layer.weight", "layer.bias"}
    around.load_state_dict(around.state_dict())
    assert not around.frozen.loaded


def test_half_the_precision_is_read_as_such(kind):
    network, files = kind
    frozen = Frozen(files, torch.bfloat16)
    for ours, theirs in zip(frozen.network.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs.bfloat16())


def test_weights_in_parts_are_read(tmp_path):
    in_two_parts(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    frozen = Frozen(NetworkFiles(tmp_path, AutoencoderKL))
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
    frozen = Frozen(NetworkFiles(files.folder, files.network_class, variant))
    first = next(network.parameters())
    expected = first.half().float() if variant == "fp16" else first  # where there is no such variant, those of none
    assert torch.equal(next(frozen.network.parameters()), expected)


def test_files_that_are_torn_are_refused_before_they_are_needed(kind):
    _, files = kind
    (path,) = files.folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match=rf"No {files.network_class.__name__} can be loaded from .*: "):
        Frozen(files)
