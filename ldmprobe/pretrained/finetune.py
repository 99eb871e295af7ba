"""Finetuning: which part of a pretrained model is trained, and which base weights it was trained on top of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from torch import nn

from ldmprobe.io.digest import weights_fingerprint
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.lazy import LazyModule
from ldmprobe.pretrained.lora import LoRA, merge_lora


def base_fingerprint(model: DiffusionModel) -> str:
    """Return the fingerprint of all weights of a model: network, autoencoder and encoders of its conditioning."""
    named = chain(model.network.named_parameters(), model.codec.weights(), model.conditioning.weights())
    return weights_fingerprint(weight for _, weight in named)


def prepare_for_finetuning_(
    model: DiffusionModel,
    prompts: Sequence[str] | None = None,
    dropout: float = 0.1,
    lora: LoRA | None = None,
    train_text_encoder: bool = False,
) -> None:
    """Prepare a model as loaded for finetuning, in place.

    What is trained requires gradients and is in training mode; the rest is frozen and left out of the model's state.
    Samples are told rows of the data that it is finetuned on, in the place of the base's.

    Args:
        prompts: prompts of probes and samples, for text-to-image; default: the base's.
        dropout: share of training samples whose caption or class becomes the null condition.
        lora: train these updates only.
        train_text_encoder: train the text encoders, too. With ``lora``, the attention of those is updated that
            diffusers has a LoRA format for (CLIP, not the T5 of Stable Diffusion 3, which stays frozen); where it has
            none, that of all (the T5 of PixArt and AuraFlow).

    Raises:
        ConfigurationError: the model takes no text and text settings are given, or ``lora`` does not fit the model.
    """
    whole = train_text_encoder and lora is None
    model.conditioning = model.conditioning.for_finetuning(dropout, prompts, whole)
    model.conditioning.forget_rows()
    for module in model.modules:
        for part in module.modules():
            if isinstance(part, LazyModule):
                part.saved = False
    model.network.requires_grad_(True).train()
    if lora is not None:
        model.conditioning.requires_grad_(False)  # such as Layout's tokens: at strength 0 the model is the base
        lora.add_to(model.network)
        if train_text_encoder:
            model.conditioning.add_updates(lora)


def frozen_keys(module: nn.Module) -> set[str]:
    """Return the keys of a module's state dict that finetuning leaves alone: all but trained parameters'."""
    trained = {name for name, parameter in module.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    return module.state_dict().keys() - trained


def merge_lora_(model: DiffusionModel) -> None:
    """Add the updates of LoRA, if there are any, to the weights, in place."""
    for network in (model.network, *model.conditioning.trained_networks):
        merge_lora(network)
