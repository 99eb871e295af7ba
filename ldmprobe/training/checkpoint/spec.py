"""The model spec: what a checkpoint says of its model, in plain values, and whether that is the model of a
configuration.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.prediction import prediction_named
from ldmprobe.diffusion.processes import process_of
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.difference import first_difference
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import describe
from ldmprobe.models.denoiser import from_network_config, network_config
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.lazy import LazyModule
from ldmprobe.models.quantization import Quantization
from ldmprobe.pretrained.lora import LoRA
from ldmprobe.pretrained.source import Source
from ldmprobe.types import PlainValues, StateDict

_MAY_DIFFER = ("latent_shape", "image_shape", "latents", "run", "pretrained")  # from run to run of one model
AUTOENCODER = "autoencoder"
"""The ``kind`` in the spec of a first stage; that of a diffusion model has none."""
_ADVICE = {
    "base_weights": "It goes on only with the pretrained weights that it was finetuned from, wherever they are now. To "
    "finetune the checkpoint itself, give it as `pretrained`, without `--ckpt_path`."
}


def model_spec(model: DiffusionModel) -> PlainValues:
    """Return the architecture of a model as plain values."""
    return {
        "network": network_config(model.network) or {"class_name": type(model.network).__name__},
        "scheduler": model.schedule.description,
        "autoencoder": network_config(model.codec.meta_module),
        "conditioning": describe(model.conditioning),
        "run": model.conditioning.run_spec,
        "latent_shape": list(model.latent_shape),
        "ema": model.weights == "ema",
    }


def autoencoder_spec(model: AutoencoderModel, quantization: Quantization | None) -> PlainValues:
    """Return the architecture of a first stage as plain values; its ``kind`` tells it from a diffusion model's spec."""
    return {
        "kind": AUTOENCODER,
        "autoencoder": model.description,
        "quantization": None if quantization is None else type(quantization).__name__,
        "image_shape": list(model.image_shape),
        "ema": model.weights == "ema",
    }


def finetune_spec(
    model: DiffusionModel, base: Source, base_weights: str, lora: LoRA | None, train_text_encoder: bool
) -> PlainValues:
    """Return the spec of a finetuned model, with the source of the weights that its checkpoints leave out.

    Args:
        base_weights: the fingerprint of these weights.
    """
    folder = Path(base.name)
    return {
        **model_spec(model),
        "conditioning": describe(model.conditioning, finetuned=True),
        "pretrained": {
            "name": str(folder.absolute() if folder.exists() else base.name),
            "revision": base.revision,
            "variant": base.variant,
            "text_precision": base.text_precision,
        },
        "base_weights": base_weights,
        "lora": lora and {**asdict(lora), "targets": list(lora.targets)},
        "train_text_encoder": train_text_encoder,
    }


def check_same_model(checkpoint: StateDict, ours: PlainValues) -> None:
    """Raise ConfigurationError, naming the first difference, if a checkpoint is of another model than ``ours``, a
    ``model_spec``.
    """
    theirs = checkpoint.get("ldmprobe")
    if theirs is None:
        raise ConfigurationError("The checkpoint was not written by ldmprobe.LatentDiffusion or ldmprobe.Autoencoding.")
    # Base weights first: what follows from them comes after them.
    for part in sorted({**ours, **theirs}, key=lambda part: part != "base_weights"):
        if part not in _MAY_DIFFER and (detail := first_difference(theirs.get(part), ours.get(part), part)):
            advice = _ADVICE.get(part, "Give the configuration it was trained with.")
            raise ConfigurationError(f"The checkpoint is of another model: its {detail}. {advice}")


def check_same_state(checkpoint: StateDict, module: nn.Module) -> None:
    """Raise ConfigurationError if loading the checkpoint would fail, or silently replace what the configuration asks
    for.

    That is a frozen network with other weights, another scale of latents, and a timestep sampler or weighting with
    another kind of state.
    """
    if "state_dict" not in checkpoint:  # sharded: read in parts
        return
    theirs: dict[str, Tensor] = checkpoint["state_dict"]
    kept = {name for name, _ in module.named_children()} - {"network", "ema", "codec", "conditioning"}
    own = module.state_dict()
    for part in sorted(kept):
        if part_of(theirs, f"{part}.").keys() != part_of(own, f"{part}.").keys():
            raise ConfigurationError(
                f"The checkpoint is of another model: its {part} keep another state. Give the configuration it was "
                "trained with."
            )
    for place, part in module.named_modules():
        if isinstance(part, LazyModule) and part.saved:
            _check_same_values(
                theirs,
                {f"{place}.{name}": value for name, value in part.network.state_dict().items()},
                f"weights of {place}",
            )
        if isinstance(part, LatentCodec) and part.scale_known:
            state = part.state_dict()
            _check_same_values(
                theirs, {f"{place}.{name}": state[name] for name in ("scale", "shift")}, f"{place}.scale or shift"
            )


def _check_same_values(theirs: dict[str, Tensor], ours: dict[str, Tensor], what: str) -> None:
    for name, value in ours.items():
        saved = theirs.get(name)
        if saved is not None and not (
            saved.shape == value.shape and torch.equal(value.cpu().to(saved.dtype), saved.cpu())
        ):
            raise ConfigurationError(
                f"The checkpoint is of another model: its {what} are others, and would take the place of the "
                "configuration's. Give the configuration it was trained with; for another one start a new run."
            )


def part_of(state_dict: StateDict, prefix: str) -> PlainValues:
    """Return the entries of a state dict whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}


def schedule_of(description: PlainValues) -> NoiseSchedule:
    """Rebuild a noise schedule from its description: from a scheduler of diffusers, a process, or from tables."""
    if "process" in description:
        return process_of(description)
    if "class_name" in description:
        return as_schedule(from_network_config(description))
    alpha, sigma = (torch.tensor(description[name], dtype=torch.float64) for name in ("alpha", "sigma"))
    prediction = prediction_named(description["prediction"])
    if prediction is None:
        raise ConfigurationError(
            f"The checkpoint's network predicts {description['prediction']!r}, a kind of your own; read it from "
            "Python, where its class has been imported."
        )
    return NoiseSchedule(alpha, sigma, prediction, torch.tensor(description["model_time"]), description["prior_std"])
