"""LoRA: low-rank updates of a frozen network, through peft; and their weights in diffusers' own format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError, needing
from ldmprobe.models.families import has_lora_format
from ldmprobe.models.library import class_named
from ldmprobe.types import Component, PlainValues, StateDict

_TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "q", "k", "v", "o")  # of CLIP; of T5
_ENCODERS = re.compile(r"(conditioning\.(?:parts\.\d+\.)?encoder\.encoders\.)(\w+)\.")


@dataclass(frozen=True)
class LoRA:
    """W = W_0 + (α/r) B A with trained A (r × inputs) and B (outputs × r), B = 0 at the start (Hu et al., 2021,
    arXiv:2106.09685, section 4.1).

    Args:
        rank: r.
        alpha: α; default: r.
        targets: last parts of the names of the linear layers and convolutions that are updated; default: the
            projections of all attention.
        dropout: on the input of A.

    Raises:
        ConfigurationError: a rank, α or dropout out of range, or no targets.
    """

    rank: int = 8
    alpha: float | None = None
    targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1 or not (self.alpha is None or self.alpha > 0):
            raise ConfigurationError(
                f"LoRA got rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}; expected rank >= 1, alpha > "
                "0, dropout in [0, 1)."
            )
        if isinstance(self.targets, str) or not self.targets:
            raise ConfigurationError(f"LoRA got targets {self.targets!r}; expected a list of one or more names.")

    def add_to(self, network: nn.Module) -> None:
        """Freeze ``network`` and put trained updates beside its targets, in place.

        Raises:
            ConfigurationError: peft is not installed; a target that is nowhere in the network, or is of a kind that has
                no LoRA; a rank above that of each of the matrices.
        """
        layers = {
            name: module for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
        }
        full_rank = 0
        for target in self.targets:
            updated = [layer for name, layer in layers.items() if name == target or name.endswith(f".{target}")]
            full_rank = max([full_rank, *(min(layer.weight.flatten(1).shape) for layer in updated)])
            if not updated:
                known = Counter(_last_part(name) for name in layers).most_common(12)
                raise ConfigurationError(
                    f"LoRA's target {target!r} is no linear layer or convolution of {type(network).__name__}; it has, "
                    f"for example, {', '.join(name for name, _ in known)}."
                )
        if self.rank > full_rank:
            raise ConfigurationError(
                f"LoRA got rank {self.rank}; none of the matrices of {type(network).__name__} that it updates has a "
                f"rank above {full_rank}: write fewer, such as 8, or train the whole network (`lora: null`)."
            )
        self._inject(network, self.targets)

    def add_to_text(self, encoder: nn.Module) -> None:
        """Freeze a text encoder, CLIP's or T5's, and put trained updates beside its attention, in place."""
        self._inject(encoder, _TEXT_TARGETS)

    def config(self, targets: Sequence[str]) -> Component:
        """Return the configuration as peft has it.

        Raises:
            ConfigurationError: peft is not installed.
        """
        with needing("peft", "LoRA"):
            from peft import LoraConfig
        alpha: Any = self.rank if self.alpha is None else self.alpha  # peft says int, and takes any number
        return LoraConfig(r=self.rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=self.dropout)

    def _inject(self, network: nn.Module, targets: Sequence[str]) -> None:
        config = self.config(targets)
        from peft import inject_adapter_in_model

        network.requires_grad_(False)
        inject_adapter_in_model(config, network)


def has_lora(network: nn.Module) -> bool:
    """Return whether peft has put trained updates into ``network``."""
    return hasattr(network, "peft_config")


@contextmanager
def lora_at(network: nn.Module, strength: float) -> Iterator[None]:
    """Run the block with the updates at another strength: W = W_0 + s (α/r) B A; then as before."""
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in network.modules() if isinstance(layer, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling.update({name: strength * scaling for name, scaling in layer.scaling.items()})
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


def at_strength(state_dict: StateDict, strength: float) -> StateDict:
    """Return a state dict with its updates at another strength: B times s."""
    return {name: strength * value if ".lora_B." in name else value for name, value in state_dict.items()}


@torch.no_grad()
def merge_lora(network: nn.Module) -> None:
    """Add the updates, if there are any, to the weights, in place: the network has the names that it had before."""
    if not has_lora(network):
        return
    from peft.tuners.lora import LoraLayer

    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, layer.get_base_layer())
    del network.peft_config


@dataclass(frozen=True)
class LoRAWeights:
    """The updates in a checkpoint.

    Attributes:
        pipeline_class: of the model that they update, where it is one of text to image; only these have a format for
            LoRA.
        layers: by the pipeline's name of the component ("unet", "transformer", "text_encoder", …) the state dict, in
            peft's names.
        configs: by the same names, the settings of peft's LoraConfig.
    """

    pipeline_class: str | None
    layers: dict[str, dict[str, Tensor]]
    configs: dict[str, PlainValues]

    def save(self, folder: Path) -> None:
        """Write ``pytorch_lora_weights.safetensors``, which a plain pipeline takes with
        ``pipeline.load_lora_weights(folder)``.

        Raises:
            ConfigurationError: diffusers has no such format for this pipeline, or for its text encoder.
        """
        pipeline = class_named("diffusers", str(self.pipeline_class))
        for name in self.layers:
            if not has_lora_format(pipeline, name):
                raise ConfigurationError(
                    f"diffusers has no LoRA format for the {name} of {self.pipeline_class or 'a model without text'}; "
                    "export it with `--merge`, the LoRA added to its weights."
                )
        settings: PlainValues = {f"{name}_lora_layers": layers for name, layers in self.layers.items()}
        settings |= {f"{name}_lora_adapter_metadata": config for name, config in self.configs.items()}
        pipeline.save_lora_weights(folder, **settings)


def lora_weights(checkpoint: StateDict) -> LoRAWeights | None:
    """Return the LoRA weights in a checkpoint's content, averaged if it has averages; None if it has no LoRA."""
    card, state = checkpoint["ldmprobe"], checkpoint["state_dict"]
    if not card.get("lora"):
        return None
    lora = LoRA(**card["lora"])
    network = "unet" if "UNet" in card["network"]["class_name"] else "transformer"
    layers, configs = {}, {}
    encoders = {found[2]: found[0] for name in sorted(state) if (found := _ENCODERS.match(name)) is not None}
    places = {network: "ema.network." if card["ema"] else "network."} | encoders
    for component, prefix in places.items():
        layers[component] = {
            name.removeprefix(prefix).replace(".default.", "."): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
        configs[component] = lora.config(lora.targets if component == network else _TEXT_TARGETS).to_dict()
    return LoRAWeights(card["conditioning"].get("pipeline"), layers, configs)


def _last_part(name: str) -> str:
    """Return a layer's name, with the part before it where the name is a number: to_q, to_out.0."""
    *_, before, last = ["", *name.split(".")]
    return f"{before}.{last}" if last.isdigit() else last
