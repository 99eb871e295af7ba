"""What a finetune starts from, and which part of it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torch import nn

from ldmprobe.io.digest import fingerprint
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.frozen import Frozen
from ldmprobe.pretrained.load import Precision, load_pipeline
from ldmprobe.pretrained.lora import LoRA, merge_lora

_COMPARED = 1024  # values of each parameter


@dataclass(frozen=True)
class BaseModel:
    """A diffusers pipeline (folder or hub id) or a checkpoint of ldmprobe (``.ckpt``).

    Args:
        name: of the folder, hub repository or checkpoint.
        revision: branch, tag or commit on the hub.
        variant: of the weights, such as "fp16".
        local_files_only: never ask the hub, only its cache.
        text_precision: of a pipeline's text encoders.
    """

    name: str
    revision: str | None = None
    variant: str | None = None
    local_files_only: bool = False
    text_precision: Precision = "float32"

    def load(self) -> DiffusionModel:
        """The model; autoencoder and text encoders of a pipeline are read when they are first needed.

        Raises:
            ConfigurationError: there is nothing there that can be loaded.
        """
        if self.name.endswith(".ckpt"):
            from ldmprobe.training.checkpoint import load_diffusion_model

            return load_diffusion_model(Path(self.name))
        return load_pipeline(
            self.name,
            revision=self.revision,
            variant=self.variant,
            local_files_only=self.local_files_only,
            text_precision=self.text_precision,
        )


def weights_fingerprint(model: DiffusionModel) -> str:
    """A hash of up to 1,024 evenly spaced values of each weight, whatever the libraries call it: another for weights that were
    trained on."""
    hashes = {  # a set: some files have tied weights twice
        fingerprint(values[:: -(-len(values) // _COMPARED)].float())
        for _, weight in chain(model.network.named_parameters(), model.codec.weights(), model.conditioning.weights())
        if weight.is_floating_point() and len(values := weight.detach().flatten())  # old files have positions, too
    }
    return fingerprint(sorted(hashes))


def finetuned(
    model: DiffusionModel,
    prompts: Sequence[str] | None = None,
    dropout: float = 0.1,
    lora: LoRA | None = None,
    train_text_encoder: bool = False,
) -> None:
    """Make ``model``, which is a base as loaded, one to be finetuned: what is trained asks for gradients and is in training mode, the
    rest is frozen and no part of its state.

    Args:
        prompts: of probes and samples, for text-to-image; default: the base's.
        dropout: share of training samples whose caption or class becomes the null condition.
        lora: train these updates only.
        train_text_encoder: train the text encoders, too; with ``lora``, by updates of the attention of those that diffusers has a format for
            (CLIP, not the T5 of Stable Diffusion 3, which stays frozen), or where there are none of all (PixArt's and AuraFlow's T5).

    Raises:
        ConfigurationError: text is asked of a model without; what ``lora`` raises.
    """
    whole = train_text_encoder and lora is None
    model.conditioning = model.conditioning.for_finetuning(dropout, prompts, whole)
    for module in model.modules:
        for part in module.modules():
            if isinstance(part, Frozen):
                part.saved = False
    model.network.requires_grad_(True).train()
    if lora is not None:
        lora.add_to(model.network)
        if train_text_encoder:
            model.conditioning.add_updates(lora)


def not_trained(module: nn.Module) -> set[str]:
    """What of a module's state dict is the base's: all but the parameters that are trained."""
    trained = {name for name, parameter in module.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    return module.state_dict().keys() - trained


def merged(model: DiffusionModel) -> None:
    """Add the updates of LoRA, if there are any, to the weights, in place."""
    for network in (model.network, *model.conditioning.trained_networks):
        merge_lora(network)
