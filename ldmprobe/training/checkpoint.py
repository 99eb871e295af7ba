"""What a checkpoint says of its model, in plain values: enough to rebuild it without the configuration and without pickle."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldmprobe.data.images import ImageData
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.prediction import KINDS
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.difference import first_difference
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import conditioning_of, describe
from ldmprobe.models.denoiser import from_network_config, network_config
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.frozen import Frozen
from ldmprobe.pretrained.lora import LoRA, LoRAWeights, lora_weights
from ldmprobe.training.base_model import BaseModel, finetuned, merged, not_trained, weights_fingerprint
from ldmprobe.training.checkpoint_io import newer_last
from ldmprobe.training.sharded_checkpoint import is_sharded_checkpoint, load_sharded_checkpoint

if TYPE_CHECKING:
    from ldmprobe.training.latent_diffusion import LatentDiffusion

_MAY_DIFFER = ("latent_shape", "run", "pretrained")  # from run to run of one model
_ADVICE = {
    "base_weights": "It goes on only with the pretrained weights that it was finetuned from, wherever they are now. To finetune the checkpoint "
    "itself, give it as `pretrained`, without `--ckpt_path`."
}


def model_card(module: LatentDiffusion) -> dict[str, Any]:
    """The architecture of a LatentDiffusion as plain values."""
    return {
        "network": network_config(module.network) or {"class_name": type(module.network).__name__},
        "scheduler": module.schedule.description,
        "autoencoder": network_config(module.codec.outline),
        "conditioning": describe(module.conditioning),
        "run": module.conditioning.run_spec,
        "latent_shape": list(module.latent_shape or ()),
        "ema": module.ema is not None,
    }


def finetune_card(
    module: LatentDiffusion, base: BaseModel, base_weights: str, lora: LoRA | None, train_text_encoder: bool
) -> dict[str, Any]:
    """Of one that was finetuned: where the weights are that its checkpoints leave out, and the text encoders' pipeline for their
    description.

    Args:
        base_weights: their fingerprint.
    """
    folder = Path(base.name)
    return {
        **model_card(module),
        "conditioning": describe(module.conditioning, finetuned=True),
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


def check_same_model(checkpoint: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise ConfigurationError, naming the first difference, if a checkpoint is of another model than that of card ``ours``."""
    theirs = checkpoint.get("ldmprobe")
    if theirs is None:
        raise ConfigurationError("The checkpoint was not written by ldmprobe.LatentDiffusion.")
    for part in sorted(
        {**ours, **theirs}, key=lambda part: part != "base_weights"
    ):  # what follows from it comes after it
        if part not in _MAY_DIFFER and (detail := first_difference(theirs.get(part), ours.get(part), part)):
            advice = _ADVICE.get(part, "Give the configuration it was trained with.")
            raise ConfigurationError(f"The checkpoint is of another model: its {detail}. {advice}")


def check_same_state(checkpoint: dict[str, Any], module: LatentDiffusion) -> None:
    """Raise ConfigurationError if loading the checkpoint would quietly replace what the configuration asks for, or fail: a
    frozen network with other weights, another scale of latents, a timestep sampler or weighting that keeps another state.
    """
    if "state_dict" not in checkpoint:  # sharded: read in parts
        return
    theirs: dict[str, Tensor] = checkpoint["state_dict"]
    kept = {name for name, _ in module.named_children()} - {"network", "ema", "codec", "conditioning"}
    own = module.state_dict()
    for part in sorted(kept):
        if _part(theirs, f"{part}.").keys() != _part(own, f"{part}.").keys():
            raise ConfigurationError(
                f"The checkpoint is of another model: its {part} keep another state. Give the configuration it was trained with."
            )
    for place, part in module.named_modules():
        if isinstance(part, Frozen) and part.saved:
            _check_same_values(
                theirs,
                {f"{place}.{name}": value for name, value in part.network.state_dict().items()},
                f"weights of {place}",
            )
    if module.codec.scale_known:
        _check_same_values(
            theirs,
            {f"codec.{name}": module.codec.state_dict()[name] for name in ("scale", "shift")},
            "codec.scale or shift",
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


def load_diffusion_model(path: Path, base: str | None = None) -> DiffusionModel:
    """The model of a LatentDiffusion checkpoint (a file, or the folder of a sharded one), with its EMA weights if there are any, ready
    to be probed or sampled.

    Args:
        base: as :meth:`Checkpoint.read`'s.

    Raises:
        ConfigurationError: as :meth:`Checkpoint.read` and :meth:`Checkpoint.model`.
    """
    return Checkpoint.read(path, base).model()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of LatentDiffusion, as it was read: tensors and plain values.

    Attributes:
        path: a file, or the folder of a sharded one.
        content: all that is in it.
        moved_base: where the pretrained model is that it was finetuned from; None for where it says.
    """

    path: Path
    content: dict[str, Any]
    moved_base: str | None = None

    @classmethod
    def read(cls, path: Path, base: str | None = None) -> Checkpoint:
        """Nothing is unpickled but tensors and plain values.

        Args:
            base: folder, hub id or ``.ckpt`` in the place of the pretrained model that the checkpoint names, with the same weights; revision and
                variant stay. Only the model that it was itself trained on top of can be named: where that is a finetune whose own base
                has moved, export it with that ``base`` (``--merge``), and give the folder here.

        Raises:
            ConfigurationError: no such checkpoint, or not one of LatentDiffusion; a base for one that was trained from scratch.
        """
        try:
            if is_sharded_checkpoint(path):
                content = load_sharded_checkpoint(path)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many kinds, all meaning "not a readable checkpoint"
            raise ConfigurationError(f"{path} is not a readable checkpoint: {type(error).__name__}: {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get("ldmprobe"), dict):
            raise ConfigurationError(f"{path} was not written by ldmprobe.LatentDiffusion.")
        if base is not None and not content["ldmprobe"].get("pretrained"):
            raise ConfigurationError(
                f"{path} was trained from scratch, so that --base is of no use to it; leave it out."
            )
        if (newer := newer_last(path)) is not None:
            warnings.warn(
                f"{path} is not the run's newest checkpoint: {newer.path.name} beside it is of step {newer.global_step}.",
                stacklevel=2,
            )
        return cls(path, content, base)

    @property
    def card(self) -> dict[str, Any]:
        """What it says of its model."""
        return self.content["ldmprobe"]

    @property
    def base(self) -> BaseModel | None:
        """What it was finetuned from; None where it was trained from scratch."""
        pretrained = self.card.get("pretrained")
        return pretrained and BaseModel(**{**pretrained, "name": self.moved_base or pretrained["name"]})

    def lora(self) -> LoRAWeights | None:
        """Its LoRA, without the base; None where it has none."""
        return lora_weights(self.content)

    def model(self) -> DiffusionModel:
        """The whole of it, with EMA weights if there are any, its LoRA merged.

        Raises:
            ConfigurationError: of a network that is not of diffusers, of other weights than it says, or on a base that is gone.
        """
        try:
            return self._rebuilt()
        except ConfigurationError:
            raise
        except Exception as error:  # of many kinds, all meaning that card and weights do not belong together
            raise ConfigurationError(
                f"{self.path} does not hold the model that it describes: {type(error).__name__}: {error}"
            ) from error

    def _rebuilt(self) -> DiffusionModel:
        """With the checkpoint's weights; of a finetune, in the base's place where it has them."""
        card, base = self.card, self.base
        model = self._on(base) if base else self._described()
        model.weights = "ema" if card["ema"] else "raw"
        model.latent_shape, model.trained_steps = tuple(card["latent_shape"]), int(self.content["global_step"])
        model.trained_on = self.content.get(ImageData.__qualname__, {})
        places = {"ema.network." if card["ema"] else "network.": model.network}
        for prefix, module in (places | {"codec.": model.codec, "conditioning.": model.conditioning}).items():
            state = _part(self.content["state_dict"], prefix)
            left_out = not_trained(module) if base else set()
            module.load_state_dict(
                {name: value for name, value in module.state_dict().items() if name in left_out} | state
            )
        model.conditioning.restore(card["run"])
        merged(model)
        model.network.eval()
        model.conditioning.eval()
        return model

    def _described(self) -> DiffusionModel:
        """By its card alone, with fresh weights."""
        card, network_card = self.card, dict(self.card["network"])
        if len(network_card) == 1:
            raise ConfigurationError(
                f"{self.path} holds a {network_card['class_name']}, which is not of diffusers; probe it from Python: build your "
                "LatentDiffusion, load its state_dict and pass module.diffusion_model() to ldmprobe.probe_ddim."
            )
        network = from_network_config(network_card)
        codec = LatentCodec(from_network_config(card["autoencoder"]) if card["autoencoder"] else None, scale=1.0)
        schedule = _schedule(card["scheduler"])
        return DiffusionModel(
            network, schedule, tuple(card["latent_shape"]), codec, conditioning_of(card["conditioning"], network)
        )

    def _on(self, base: BaseModel) -> DiffusionModel:
        """What it was finetuned from, its LoRA added where it has one."""
        card = self.card
        try:
            model = base.load()
        except ConfigurationError as error:
            advice = (
                f"Exported with `--merge` and that `--base`, it will do as the `--base` of {self.path}."
                if Path(base.name).is_file()
                else f"If it has moved, name its new place: `--base` where {self.path} is probed, sampled or exported, `pretrained` where "
                "`ldmprobe fit` goes on from it."
            )
            raise ConfigurationError(
                f"{self.path} holds what was trained on top of {base.name}, which cannot be loaded: {error} {advice}"
            ) from error
        if weights_fingerprint(model) != card["base_weights"]:
            raise ConfigurationError(
                f"{self.path} holds what was trained on top of {card['pretrained']['name']}, and the weights in {base.name} are others; put those "
                "back that it was finetuned from, or name their place by `--base`."
            )
        lora = LoRA(**card["lora"]) if card["lora"] else None
        finetuned(model, lora=lora, train_text_encoder=card["train_text_encoder"])
        model.schedule = _schedule(card["scheduler"])
        return model


def _schedule(description: dict[str, Any]) -> NoiseSchedule:
    """Rebuild a noise schedule from its description: from a scheduler of diffusers, or from tables."""
    if "class_name" in description:
        return as_schedule(from_network_config(description))
    alpha, sigma = (torch.tensor(description[name], dtype=torch.float64) for name in ("alpha", "sigma"))
    kind = description["prediction"]
    if kind not in KINDS:
        raise ConfigurationError(
            f"The checkpoint's network predicts {kind!r}, a kind of your own; probe it from Python: build your LatentDiffusion, load its "
            "state_dict and pass module.diffusion_model() to ldmprobe.probe_ddim."
        )
    return NoiseSchedule(alpha, sigma, KINDS[kind], torch.tensor(description["model_time"]), description["prior_std"])


def _part(state_dict: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
