"""Loading a model where it is to run: a checkpoint of ldmprobe, a diffusers pipeline, or an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ldmprobe.models.autoencoder import autoencoder_folder, holds_autoencoder
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.models.device import move
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.pretrained.source import Source
from ldmprobe.training.checkpoint.checkpoint import Checkpoint, model_of


def load_model(
    source: Source | str | Path, device: str | None = None, prompts: Sequence[str] | None = None
) -> DiffusionModel:
    """Load a checkpoint of ldmprobe, with its EMA weights if it has any, or a diffusers pipeline, ready to be probed,
    sampled or finetuned.

    Args:
        source: checkpoint, pipeline folder or hub id; a ``Source`` where more than its name is to be given.
        device: such as "cuda"; default: a GPU if there is one.
        prompts: prompts of a text-to-image model's samples, in turn; default: the checkpoint's own, or the empty prompt
            for a pipeline.

    Raises:
        ConfigurationError: nothing loadable there, settings or prompts that such a source does not take, or no such
            device.
    """
    model = model_of(Source.of(source))
    if prompts is not None:
        model.conditioning.set_prompts(prompts)
    move(model.modules, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model


def load_autoencoder(source: Source | str | Path, device: str | None = None) -> AutoencoderModel:
    """Load the autoencoder of a checkpoint of Autoencoding, with its EMA weights if it has any, or one of diffusers.

    Args:
        source: checkpoint, folder or hub id of an autoencoder; "builtin:digits" is the one shipped here.
        device: such as "cuda"; default: a GPU if there is one.

    Raises:
        ConfigurationError: nothing loadable there, or a diffusion model.
    """
    source = Source.of(source)
    if source.is_checkpoint:
        model = Checkpoint.of(source).autoencoder()
    else:
        model = AutoencoderModel(autoencoder_folder(source.name, None, source.revision, source.local_files_only).load())
    move(model.modules, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model


def is_autoencoder(source: Source | str | Path) -> bool:
    """Return whether this is a checkpoint of Autoencoding, or the folder or hub id of an autoencoder, and no diffusion
    model.
    """
    source = Source.of(source)
    if source.is_checkpoint:
        return Checkpoint.read(Path(source.name)).is_autoencoder
    return holds_autoencoder(source.name, source.revision, source.local_files_only)
