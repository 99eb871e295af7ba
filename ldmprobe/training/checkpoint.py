"""What a checkpoint says of its model, in plain values: enough to rebuild it without the configuration and without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import ClassConditioning, Conditioning, Unconditional
from ldmprobe.models.denoiser import from_network_config, network_config
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.training.sharded_checkpoint import is_sharded_checkpoint, load_sharded_checkpoint

if TYPE_CHECKING:
    from ldmprobe.training.latent_diffusion import LatentDiffusion


def model_card(module: LatentDiffusion) -> dict[str, Any]:
    """The architecture of a LatentDiffusion as plain values."""
    conditioning = module.conditioning
    return {
        "network": network_config(module.network) or {"class_name": type(module.network).__name__},
        "scheduler": network_config(module.schedule.scheduler),
        "autoencoder": network_config(module.codec.autoencoder),
        "num_classes": conditioning.num_classes if isinstance(conditioning, ClassConditioning) else None,
        "latent_shape": list(module.latent_shape or ()),
        "ema": module.ema is not None,
    }


def check_same_model(checkpoint: dict[str, Any], module: LatentDiffusion) -> None:
    """Raise ConfigurationError, naming the first difference, if a checkpoint is of another model than ``module``."""
    theirs, ours = checkpoint.get("ldmprobe"), model_card(module)
    if theirs is None:
        raise ConfigurationError("The checkpoint was not written by ldmprobe.LatentDiffusion.")
    for part, value in ours.items():
        other = theirs.get(part)
        if part == "latent_shape" or _plain(value) == _plain(other):
            continue
        detail = f"its {part} is {other}, this run's is {value}"
        if isinstance(value, dict) and isinstance(other, dict):
            key = next(key for key in {**value, **other} if _plain(value.get(key)) != _plain(other.get(key)))
            detail = f"its {part} has {key} = {other.get(key)}, this run's has {value.get(key)}"
        raise ConfigurationError(
            f"The checkpoint is of another model: {detail}. Give the configuration it was trained with."
        )


def load_diffusion_model(path: Path) -> DiffusionModel:
    """The model of a LatentDiffusion checkpoint (a file, or the folder of a sharded one), with its EMA weights if there are any, ready
    to be probed or sampled.

    Nothing is unpickled but tensors and plain values.

    Raises:
        ConfigurationError: no such checkpoint, not one of LatentDiffusion, of a network that is not of diffusers, or of other weights
            than it says.
    """
    try:
        if is_sharded_checkpoint(path):
            checkpoint = load_sharded_checkpoint(path)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, all meaning "not a readable checkpoint"
        raise ConfigurationError(f"{path} is not a readable checkpoint: {type(error).__name__}: {error}") from error
    card = checkpoint.get("ldmprobe") if isinstance(checkpoint, dict) else None
    if not isinstance(card, dict):
        raise ConfigurationError(f"{path} was not written by ldmprobe.LatentDiffusion.")
    try:
        return _rebuilt(path, checkpoint, card)
    except ConfigurationError:
        raise
    except Exception as error:  # of many kinds, all meaning that card and weights do not belong together
        raise ConfigurationError(
            f"{path} does not hold the model that it describes: {type(error).__name__}: {error}"
        ) from error


def _rebuilt(path: Path, checkpoint: dict[str, Any], card: dict[str, Any]) -> DiffusionModel:
    network_card = dict(card["network"])
    if len(network_card) == 1:
        raise ConfigurationError(
            f"{path} holds a {network_card['class_name']}, which is not of diffusers; probe it from Python: build your "
            "LatentDiffusion, load its state_dict and pass module.diffusion_model() to ldmprobe.probe_ddim."
        )
    network = from_network_config(network_card)
    autoencoder = from_network_config(card["autoencoder"]) if card["autoencoder"] else None
    codec = LatentCodec(autoencoder)
    prefix = "ema.network." if card["ema"] else "network."
    network.load_state_dict(_part(checkpoint["state_dict"], prefix))
    codec.load_state_dict(_part(checkpoint["state_dict"], "codec."))
    conditioning: Conditioning = ClassConditioning(card["num_classes"]) if card["num_classes"] else Unconditional()
    schedule = NoiseSchedule(from_network_config(card["scheduler"]))
    weights = "ema" if card["ema"] else "raw"
    shape, steps = tuple(card["latent_shape"]), int(checkpoint["global_step"])
    return DiffusionModel(network.eval(), schedule, shape, codec, conditioning, weights, steps)


def _part(state_dict: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}


def _plain(value: Any) -> Any:
    """Tuples and lists alike, through the round trip of a checkpoint."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
