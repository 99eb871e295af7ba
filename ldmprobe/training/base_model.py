"""What a finetune starts from, and which part of it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.conditioning import ClassConditioning, Conditioning
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.pretrained import load_pipeline
from ldmprobe.models.text import TextConditioning
from ldmprobe.probing.record import fingerprint
from ldmprobe.training.lora import LoRA, merge_lora

_COMPARED = 1024  # values of each parameter


@dataclass(frozen=True)
class BaseModel:
    """A diffusers pipeline (folder or hub id) or a checkpoint of ldmprobe (``.ckpt``).

    Args:
        name: of the folder, hub repository or checkpoint.
        revision: branch, tag or commit on the hub.
        variant: of the weights, such as "fp16".
        local_files_only: never ask the hub, only its cache.
    """

    name: str
    revision: str | None = None
    variant: str | None = None
    local_files_only: bool = False

    def load(self) -> DiffusionModel:
        """All of it, in float32.

        Raises:
            ConfigurationError: there is nothing there that can be loaded.
        """
        if self.name.endswith(".ckpt"):
            from ldmprobe.training.checkpoint import load_diffusion_model

            return load_diffusion_model(Path(self.name))
        return load_pipeline(
            self.name, revision=self.revision, variant=self.variant, local_files_only=self.local_files_only
        )


def weights_fingerprint(model: DiffusionModel) -> str:
    """A hash of up to 1,024 evenly spaced values of each parameter, whatever the libraries call it: another for weights that were
    trained on."""
    parameters = [parameter.detach().flatten() for module in model.modules for parameter in module.parameters()]
    return fingerprint(sorted(fingerprint(value[:: -(-len(value) // _COMPARED)].float()) for value in parameters))


def finetuned(
    model: DiffusionModel,
    prompts: Sequence[str] | None = None,
    dropout: float = 0.1,
    lora: LoRA | None = None,
    train_text_encoder: bool = False,
) -> None:
    """Make ``model``, which is a base as loaded, one to be finetuned: what is trained asks for gradients and is in training mode, the
    rest is frozen.

    Args:
        prompts: of probes and samples, for text-to-image; default: the base's.
        dropout: share of training samples whose caption or class becomes the null condition.
        lora: train these updates only.
        train_text_encoder: train the text encoders, too; with ``lora``, by updates of their attention.

    Raises:
        ConfigurationError: text is asked of a model without; what ``lora`` raises.
    """
    conditioning = model.conditioning
    if not isinstance(conditioning, TextConditioning) and (train_text_encoder or prompts):
        what = "train_text_encoder" if train_text_encoder else "prompts"
        raise ConfigurationError(f"The pretrained model has no text encoder; leave out `{what}`.")
    if isinstance(conditioning, TextConditioning):
        prompts = conditioning.prompts if prompts is None else prompts
        model.conditioning = TextConditioning(conditioning.encoder, dropout, prompts, train_text_encoder)
    elif isinstance(conditioning, ClassConditioning):
        model.conditioning = ClassConditioning(conditioning.num_classes, dropout)
    model.network.requires_grad_(True).train()
    if lora is not None:
        lora.add_to(model.network)
        for encoder in text_encoders(model.conditioning) if train_text_encoder else ():
            lora.add_to_text(encoder)


def not_trained(module: nn.Module) -> set[str]:
    """What of a module's state dict is the base's: all but the parameters that are trained."""
    trained = {name for name, parameter in module.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    return module.state_dict().keys() - trained


def merged(model: DiffusionModel) -> None:
    """Add the updates of LoRA, if there are any, to the weights, in place."""
    for network in (model.network, *text_encoders(model.conditioning)):
        merge_lora(network)


def text_encoders(conditioning: Conditioning) -> list[nn.Module]:
    """None where there is no text."""
    return list(conditioning.encoder.encoders.values()) if isinstance(conditioning, TextConditioning) else []
