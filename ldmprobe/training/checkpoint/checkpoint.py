"""Checkpoint: a checkpoint of ldmprobe as read, rebuilt by its own spec without configuration and without pickle."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import ldmprobe.models.preconditioned  # noqa: F401 (so that its wrappers are known by name)
from ldmprobe.data.images import ImageData
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.autoencoder import holds_autoencoder
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import conditioning_of
from ldmprobe.models.denoiser import from_network_config
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.noisy_classifier import CLASSIFIER
from ldmprobe.pretrained.finetune import base_fingerprint, frozen_keys, merge_lora_, prepare_for_finetuning_
from ldmprobe.pretrained.load import load_pipeline
from ldmprobe.pretrained.lora import LoRA, LoRAWeights, at_strength, lora_weights
from ldmprobe.pretrained.source import Source
from ldmprobe.training.checkpoint.newest import newer_last
from ldmprobe.training.checkpoint.sharded import is_sharded_checkpoint, load_sharded_checkpoint
from ldmprobe.training.checkpoint.spec import AUTOENCODER, part_of, schedule_of
from ldmprobe.training.ema_snapshots import averaged_weights
from ldmprobe.types import PlainValues, StateDict


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of LatentDiffusion or Autoencoding as read: tensors and plain values.

    Attributes:
        path: a file, or the folder of a sharded one.
        content: everything in it.
        moved_base: the place of the pretrained model that it was finetuned from, if not the one that it names.
        weights: which weights its model has: "ema" or "raw", or another average.
    """

    path: Path
    content: StateDict
    moved_base: str | None = None
    weights: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", self.weights or ("ema" if self.spec.get("ema") else "raw"))

    @classmethod
    def of(cls, source: Source) -> Checkpoint:
        """Read the checkpoint of a source, with the average that it asks for.

        Raises:
            ConfigurationError: as ``read`` and ``averaged``.
        """
        found = cls.read(Path(source.name), source.base)
        found = found if source.ema_length is None else found.averaged(source.ema_length)
        return found if source.lora_strength == 1 else found.at_strength(source.lora_strength)

    @classmethod
    def read(cls, path: Path, base: str | None = None) -> Checkpoint:
        """Read a checkpoint, unpickling nothing but tensors and plain values.

        Args:
            base: folder, hub id or checkpoint in the place of the pretrained model that the checkpoint names, with the
                same weights; a pipeline's revision and variant stay. It replaces the model that this checkpoint was
                itself trained on top of: if that is a finetune whose own base has moved, export it with that ``base``
                (``--merge``), and give the folder here.

        Raises:
            ConfigurationError: it cannot be read, was not written by ldmprobe, or was trained from scratch and
                ``base`` is given.
        """
        try:
            if is_sharded_checkpoint(path):
                content = load_sharded_checkpoint(path)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many kinds, all meaning "not a readable checkpoint"
            raise ConfigurationError(f"{path} is not a readable checkpoint: {type(error).__name__}: {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get("ldmprobe"), dict):
            raise ConfigurationError(f"{path} was not written by one of ldmprobe's modules, such as LatentDiffusion.")
        if base is not None and not content["ldmprobe"].get("pretrained"):
            raise ConfigurationError(f"{path} was trained from scratch and needs no base ({base}); leave out `--base`.")
        if (newer := newer_last(path)) is not None:
            warnings.warn(
                f"{path} is not the run's newest checkpoint: {newer.path.name} beside it is of step "
                f"{newer.global_step}.",
                stacklevel=2,
            )
        return cls(path, content, base)

    def averaged(self, length: float) -> Checkpoint:
        """Return it with another average of the weights in the place of its own (``PostHocEMA``).

        Args:
            length: σ_rel.

        Raises:
            ConfigurationError: there are no averages that this one can be made of.
        """
        weights = averaged_weights(self.path, length, self.content)
        state = self.content["state_dict"] | {f"{self._place}{name}": value for name, value in weights.items()}
        content = {**self.content, "state_dict": state}
        return replace(self, content=content, weights=f"power-function average of length {length:g}")

    def at_strength(self, strength: float) -> Checkpoint:
        """Return it with its LoRA at another strength.

        Raises:
            ConfigurationError: it has no LoRA, or the strength is not finite.
        """
        if not self.spec.get("lora"):
            raise ConfigurationError(f"{self.path} has no LoRA to set the strength of; leave out `--lora-strength`.")
        if not math.isfinite(strength):
            raise ConfigurationError(f"The LoRA's strength is {strength}; expected a number, such as 0.8.")
        content = {**self.content, "state_dict": at_strength(self.content["state_dict"], strength)}
        return replace(self, content=content, weights=f"{self.weights}, LoRA at strength {strength:g}")

    @property
    def spec(self) -> PlainValues:
        """The ``model_spec`` of its model."""
        return self.content["ldmprobe"]

    @property
    def base(self) -> Source | None:
        """The source of what it was finetuned from; None if it was trained from scratch."""
        pretrained = self.spec.get("pretrained")
        if self.moved_base is not None and Source(self.moved_base).is_checkpoint:
            return Source(self.moved_base)
        return pretrained and Source(**{**pretrained, "name": self.moved_base or pretrained["name"]})

    @property
    def is_autoencoder(self) -> bool:
        """Whether it is of Autoencoding."""
        return self.spec.get("kind") == AUTOENCODER

    @property
    def _place(self) -> str:
        """The beginning of the names that its model's weights have in it."""
        if self.spec.get("ema"):
            return "ema.network."
        return "autoencoder." if self.is_autoencoder else "network."

    def autoencoder(self) -> AutoencoderModel:
        """Return the first stage, with EMA weights if there are any.

        Raises:
            ConfigurationError: it holds a diffusion model, or weights that are not those of the spec.
        """
        if not self.is_autoencoder:
            raise ConfigurationError(
                f"{self.path} holds a diffusion model, not an autoencoder; expected a checkpoint of "
                "ldmprobe.Autoencoding."
            )
        spec = self.spec
        network = from_network_config(spec["autoencoder"])
        try:
            network.load_state_dict(part_of(self.content["state_dict"], self._place))
        except RuntimeError as error:
            raise ConfigurationError(f"{self.path} does not hold the autoencoder that it describes: {error}") from error
        return AutoencoderModel(
            network.requires_grad_(False).eval(),
            tuple(spec["image_shape"]),
            self.weights,
            int(self.content["global_step"]),
            self.content.get(ImageData.__qualname__, {}),
        )

    def lora(self) -> LoRAWeights | None:
        """Return its LoRA without the base; None if it has none."""
        return lora_weights(self.content)

    def model(self) -> DiffusionModel:
        """Return the whole model, with EMA weights if there are any and LoRA merged.

        Raises:
            ConfigurationError: the network is not of diffusers, the weights are not those of the spec, or the base
                cannot be loaded.
        """
        if self.is_autoencoder:
            raise _first_stage(self.path, "write it to a folder (`ldmprobe export`) and train")
        if self.spec.get("kind") == CLASSIFIER:
            raise ConfigurationError(
                f"{self.path} holds a classifier of noisy latents, which makes no samples by itself: give it to a "
                "diffusion model, `ldmprobe sample MODEL --classifier FILE`."
            )
        try:
            return self._rebuilt()
        except ConfigurationError:
            raise
        except Exception as error:  # of many kinds, all meaning that spec and weights do not belong together
            raise ConfigurationError(
                f"{self.path} does not hold the model that it describes: {type(error).__name__}: {error}"
            ) from error

    def _rebuilt(self) -> DiffusionModel:
        spec, base = self.spec, self.base
        model = self._loaded(base) if base else self._described()
        trained = {each for each in model.conditioning.parameters() if each.requires_grad}
        if base:
            lora = LoRA(**spec["lora"]) if spec["lora"] else None
            prepare_for_finetuning_(model, lora=lora, train_text_encoder=spec["train_text_encoder"])
            model.schedule = schedule_of(spec["scheduler"])
        model.weights = self.weights
        model.latent_shape, model.trained_steps = tuple(spec["latent_shape"]), int(self.content["global_step"])
        model.trained_on = self.content.get(ImageData.__qualname__, {})
        places = {self._place: model.network}
        for prefix, module in (places | {"codec.": model.codec, "conditioning.": model.conditioning}).items():
            state = part_of(self.content["state_dict"], prefix)
            left_out = frozen_keys(module) if base else set()
            module.load_state_dict(
                {name: value for name, value in module.state_dict().items() if name in left_out} | state
            )
        model.conditioning.restore(spec["run"])
        merge_lora_(model)
        for parameter in trained.intersection(model.conditioning.parameters()):
            parameter.requires_grad_(True)  # for another finetune, which may train it
        model.network.eval()
        model.conditioning.eval()
        return model

    def _described(self) -> DiffusionModel:
        """Build the model of the spec, with fresh weights."""
        spec, network_spec = self.spec, dict(self.spec["network"])
        if len(network_spec) == 1:
            raise ConfigurationError(
                f"{self.path} holds a {network_spec['class_name']}, which is not of diffusers; probe it from Python: "
                "build your LatentDiffusion, load its state_dict and pass module.diffusion_model() to "
                "ldmprobe.probe_sampling."
            )
        network = from_network_config(network_spec)
        codec = LatentCodec(from_network_config(spec["autoencoder"]) if spec["autoencoder"] else None, scale=1.0)
        schedule = schedule_of(spec["scheduler"])
        return DiffusionModel(
            network, schedule, tuple(spec["latent_shape"]), codec, conditioning_of(spec["conditioning"], network)
        )

    def _loaded(self, base: Source) -> DiffusionModel:
        """Load the base, with the weights that it was finetuned from."""
        spec = self.spec
        try:
            model = model_of(base)
        except ConfigurationError as error:
            advice = (
                f"Exported with `--merge` and that `--base`, it will do as the `--base` of {self.path}."
                if Path(base.name).is_file()
                else f"If it has moved, name its new place: `--base` where {self.path} is probed, sampled or exported, "
                "`pretrained` where `ldmprobe fit` goes on from it."
            )
            raise ConfigurationError(
                f"{self.path} holds what was trained on top of {base.name}, which cannot be loaded: {error} {advice}"
            ) from error
        if base_fingerprint(model) != spec["base_weights"]:
            raise ConfigurationError(
                f"The base weights in {base.name} are not those that {self.path} was finetuned from, then in "
                f"{spec['pretrained']['name']}. Restore the originals, or give their location with `--base`."
            )
        return model


def model_of(source: Source) -> DiffusionModel:
    """Return the model of a checkpoint or of a diffusers pipeline, on the CPU.

    Raises:
        ConfigurationError: nothing loadable there, or settings that such a source does not take.
    """
    if source.is_checkpoint:
        if given := source.pipeline_settings:
            raise ConfigurationError(
                f"{source.name} is a checkpoint, and {', '.join(given)} can only be set for pipelines; leave it out "
                "(HF_HUB_OFFLINE=1 in the environment keeps the hub from being asked)."
            )
        return Checkpoint.of(source).model()
    for is_set, why in (
        (source.ema_length is not None, "of whose weights there is one average only; leave out `--ema-length`"),
        (source.lora_strength != 1, "which has no LoRA of its own; leave out `--lora-strength`"),
        (source.base is not None, f"which is whole; leave out `--base` ({source.base}), which only a finetune takes"),
    ):
        if is_set:
            raise ConfigurationError(f"{source.name} is a pipeline, {why}.")
    if holds_autoencoder(source.name):
        raise _first_stage(source.name, "train")
    return load_pipeline(source)


def _first_stage(path: str | Path, then: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path} holds an autoencoder, the first stage, which makes no samples by itself: {then} a latent diffusion "
        "model with that folder as its `codec.autoencoder`; `ldmprobe probe` shows what it reconstructs."
    )
