"""Conditioning: what a network is told besides z_t and t, and whatever the rest of the house must know of it.

More than 300 lines, most of which say what a conditioning may answer: nobody else asks which one it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning.held_out_rows import HeldOutRows
from ldmprobe.models.conditioning.protocols import CardPart, ConditioningData, FrozenEncoder, Shown, Updates
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.library import class_named, own_class_named
from ldmprobe.types import Batch, Component, PlainValues


class Conditioning(nn.Module, ABC):
    """Turns batches and sample numbers into a `Condition`.

    The first three methods must be written; the others have defaults that fit a conditioning without weights of its
    own. One that is to be rebuilt from a checkpoint says its constructor's arguments in `spec`.

    Args:
        dropout: share of training samples whose condition becomes the null condition (Ho & Salimans, 2022,
            arXiv:2207.12598).

    Attributes:
        columns: the names in batches that it reads.
        num_rows: of how many held-out rows samples have the conditions, in turn; None where a sample's number says all.
        beside_text: the pipeline class of diffusers that is told it beside what StableDiffusionPipeline is told; ""
            where there is none.

    Raises:
        ConfigurationError: dropout outside [0, 1).
    """

    columns: tuple[str, ...] = ()
    num_rows: int | None = None
    beside_text = ""

    @property
    def column_kinds(self) -> dict[str, str]:
        """The class of the column that makes what it reads or can read of a dataset, such as "MaskColumn", by name in
        batches: all but labels and captions.
        """
        return {}

    @property
    def hole_column(self) -> str | None:
        """The name in batches of what says where samples fill images in; None where they fill in nothing."""
        return None

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = self._checked(dropout)
        self._knew_null = False

    def _checked(self, dropout: float) -> float:
        if not 0 <= dropout < 1:
            raise ConfigurationError(f"{type(self).__name__} got dropout {dropout}; expected a number in [0, 1).")
        return dropout

    # --- conditions ------------------------------------------------------------------------------------------------

    @abstractmethod
    def from_batch(self, batch: Batch) -> Condition:
        """Return the condition of each sample of a batch."""

    @abstractmethod
    def for_samples(self, sample_ids: Tensor) -> Condition:
        """Return a fixed condition for each of a probe's samples, a function of its number (N,) alone; `HeldOutRows`
        has rows by number.
        """

    @abstractmethod
    def null(self, num_samples: int, device: torch.device) -> Condition:
        """Return the condition that stands for "none", for classifier-free guidance and dropout."""

    def without(self, device: torch.device) -> Callable[[Condition], Condition]:
        """Return what makes of a condition that which guidance compares it with: by default, the null condition."""
        null = self.null(1, device)
        return lambda condition: {name: value.expand_as(condition[name]) for name, value in null.items()}

    def as_columns(self, sample_ids: Tensor) -> Batch:
        """Return what samples are told as the columns of a batch have it, where that is known: labels and captions."""
        return {}

    def for_training(self, batch: Batch) -> Condition:
        """Return the condition of each sample, dropped where classifier-free guidance asks for it."""
        return self.dropped(self.from_batch(batch))

    def dropped(self, condition: Condition) -> Condition:
        """Return the condition of each sample with a share of `dropout` replaced by the null condition."""
        first = next(iter(condition.values()), None)
        if first is None:
            return condition
        dropped = torch.rand(len(first), device=first.device, dtype=torch.float32) < self.dropout
        if self.trained and not dropped.any():  # the null condition would be encoded for nothing
            return condition
        null = self.null(1, first.device)
        return {
            name: torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), null[name].to(value), value)
            for name, value in condition.items()
        }

    # --- before training -------------------------------------------------------------------------------------------

    def prepare(self, network: nn.Module, data: ConditioningData, codec: LatentCodec) -> None:
        """Get ready for this network, data and codec, before training or a probe on data.

        Raises:
            ConfigurationError: they do not fit.
        """
        self.check_columns(data.batch_names)

    def check_columns(self, names: Collection[str]) -> None:
        """Raise ConfigurationError if one of `columns` is not among the names in a batch."""
        for name in self.columns:
            if name not in names:
                setting = (
                    f"set the data's `{name}_column`"
                    if name in ("label", "caption")
                    else "add it to the data's `columns`"
                )
                raise ConfigurationError(f"{type(self).__name__} reads {name!r}, which the data lacks; {setting}.")

    def check_values(self, batch: Batch) -> None:
        """Raise ConfigurationError if values in a batch would be taken for others; may wait for the device."""

    def forget_rows(self) -> None:
        """Forget the held-out rows that samples have the conditions of: `prepare` then chooses them of its data."""
        for part in self.modules():
            if isinstance(part, HeldOutRows):
                part.forget()

    def use_codec(self, codec: LatentCodec) -> None:
        """Take the codec of the model that it is part of, if it encodes pictures."""

    # --- what it says of itself ------------------------------------------------------------------------------------

    @property
    def trained(self) -> bool:
        """Return whether it has parameters that are trained, so that its conditions change."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def ready(self) -> bool:
        """Return whether samples have conditions: where these are of held-out rows, once there are some."""
        return True

    @property
    def tells_classes(self) -> bool:
        """Return whether its `class_labels` are classes of the data, rather than levels of noise or the like."""
        return "label" in self.columns

    @property
    def small_size(self) -> tuple[int, ...] | None:
        """Return (h, w) of the small image that it tells, if it does."""
        return None

    @property
    def knows_null(self) -> bool:
        """Return whether the network is trained without a condition, too, so that it can be guided."""
        return self._knew_null or self.dropout > 0

    @property
    def most_nats(self) -> float:
        """Return the largest entropy that what it tells can have, in nats; infinite where that is not known."""
        return math.inf

    def unlike(self, condition: Condition) -> str:
        """Return in words how what samples are told is surely distributed otherwise than the `condition` of data; ""
        where it is not, or that is not known.
        """
        return ""

    @property
    def description(self) -> PlainValues:
        """The plain values that decide, beside its weights, the conditions of a probe's samples."""
        return {}

    def swapped(self, condition: Condition, other: Condition) -> dict[str, Condition]:
        """Return `condition` with what it tells replaced by what `other` tells, by what was replaced: a model that uses
        it denoises worse so.
        """
        return {self.label: other} if condition else {}

    def shown(self, sample_ids: Tensor) -> Shown | None:
        """Return what is shown beside samples, where their conditions are pictures."""
        return None

    def hidden(self, batch: Batch) -> Tensor | None:
        """Return which pixels of images are filled in, (N, 1, H, W), not 0 there; None without `hole_column`."""
        return None

    def enlarged(self, batch: Batch) -> Tensor | None:
        """Return the small images of a batch that samples enlarge, (N, C, h, w) in [−1, 1]; None without any."""
        return None

    def set_prompts(self, prompts: Sequence[str]) -> None:
        """Give samples these prompts in turn.

        Raises:
            ConfigurationError: it takes no text.
        """
        raise ConfigurationError("The model takes no text, so that --prompt is of no use to it; leave it out.")

    def assumed(self, data: ConditioningData) -> PlainValues:
        """Return what rows of `data` are taken to have of columns that it lacks, for a probe; default: nothing."""
        return {}

    # --- checkpoints -----------------------------------------------------------------------------------------------

    @property
    def spec(self) -> PlainValues:
        """Return what a checkpoint says of it, as plain values: all that `from_spec` needs, but for its weights."""
        return {}

    @property
    def finetuned_spec(self) -> PlainValues:
        """Return its description where the pretrained model, which the checkpoint names, has the rest."""
        return self.spec

    @property
    def run_spec(self) -> PlainValues:
        """Return what may differ from run to run of one model, as plain values."""
        return {"dropout": self.dropout}

    @classmethod
    def from_spec(cls, spec: PlainValues, network: nn.Module) -> Conditioning:
        """Build it anew, with fresh weights, for `network`."""
        return cls(**spec)

    def restore(self, run_spec: PlainValues) -> None:
        """Take over the `run_spec` of a checkpoint."""
        self.dropout = run_spec.get("dropout", self.dropout)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield its weights by name, without loading those that are read from files."""
        yield from self.named_parameters()

    # --- finetuning ------------------------------------------------------------------------------------------------

    def for_finetuning(self, dropout: float, prompts: Sequence[str] | None, train_text_encoder: bool) -> Conditioning:
        """Return it as the finetune of a pretrained model has it: text encoders are frozen unless they are trained
        whole, and what else it has of its own is trained with the whole network.

        Raises:
            ConfigurationError: text is asked of a model without.
        """
        if train_text_encoder or prompts:
            what = "train_text_encoder" if train_text_encoder else "prompts"
            raise ConfigurationError(f"The pretrained model has no text encoder; leave out `{what}`.")
        self._knew_null = self.knows_null
        self.dropout = self._checked(dropout)
        return self

    def check_finetune(self, num_classes: int | None, name: str) -> None:
        """Raise ConfigurationError if so many classes of data would be taken for others that `name` knows."""

    @property
    def trained_networks(self) -> list[nn.Module]:
        """The encoders in training, for gradient checkpointing and low-rank updates."""
        return []

    def add_updates(self, updates: Updates) -> None:
        """Train low-rank updates of its text encoders.

        Raises:
            ConfigurationError: it has none.
        """
        raise ConfigurationError("The pretrained model has no text encoder; leave out `train_text_encoder`.")

    # --- diffusers pipelines ---------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """Return what messages call it."""
        return type(self).__name__

    def pipeline_name(self, network: str, latents: bool, flow: bool) -> str | None:
        """Return the pipeline class of diffusers that samples with it; None where there is none.

        Args:
            network: the class name of the network.
            latents: whether there is an autoencoder.
            flow: whether the noise schedule is flow matching's.
        """
        return None

    @property
    def pipeline_parts(self) -> PlainValues:
        """Return what of it is a part or setting of the pipeline `beside_text`."""
        return {}

    @property
    def call_arguments(self) -> str:
        """Return the arguments by which the pipeline `beside_text` is told it."""
        return ""

    def check_exportable(self, network: nn.Module, latent_shape: tuple[int, ...]) -> None:
        """Raise ConfigurationError if its pipeline would sample in another shape or class."""

    def assemble(self, name: str, parts: PlainValues) -> Component:
        """Return the pipeline of class `name` with those of `parts` that it takes, and what it adds itself."""
        cls = class_named("diffusers", name)
        taken = {parameter for names in cls._get_signature_keys(cls) for parameter in names}
        return cls(**{part: value for part, value in parts.items() if part in taken})

    def card(self, pipeline: Component, latent_shape: tuple[int, ...]) -> CardPart:
        """Return what the card of the exported `pipeline` says of it."""
        return CardPart()

    # --- cache -----------------------------------------------------------------------------------------------------

    @property
    def frozen_encoder(self) -> FrozenEncoder | None:
        """Return what of it a cache can encode beforehand."""
        return None

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Return what it takes of a batch with `image`, each row's by itself (N, …), where a cache has to keep it:
        batches from the cache have it as `observed`.
        """
        return {}

    @property
    def observation_key(self) -> PlainValues:
        """The settings on which `observe` depends, as plain values."""
        return {}


def describe(conditioning: Conditioning, finetuned: bool = False) -> PlainValues:
    """Return what a checkpoint says of a conditioning, for `conditioning_of`."""
    spec = conditioning.finetuned_spec if finetuned else conditioning.spec
    return {"class_name": type(conditioning).__name__, **spec}


def conditioning_of(description: PlainValues, network: nn.Module) -> Conditioning:
    """Build the conditioning that `describe` described, with fresh weights.

    Raises:
        ConfigurationError: its class is one of the user's own that has not been imported.
    """
    name = description["class_name"]
    kind = own_class_named(Conditioning, name, "the conditioning")  # type: ignore[type-abstract]
    return kind.from_spec({key: value for key, value in description.items() if key != "class_name"}, network)
