"""Conditions: several conditionings of one network.

More than 300 lines: each of a conditioning's verbs, said of several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning.base import Conditioning, conditioning_of, describe
from ldmprobe.models.conditioning.changed_rows import ChangedRows
from ldmprobe.models.conditioning.held_out_rows import HeldOutRows
from ldmprobe.models.conditioning.protocols import CardPart, ConditioningData, FrozenEncoder, Shown, Updates
from ldmprobe.models.denoiser import CONCAT, Condition
from ldmprobe.types import Batch, Component, PlainValues

_NUMBERS = ("label",)  # columns of one number a row, which held-out rows keep for parts without rows of their own


class Conditions(Conditioning):
    """Several conditionings at once: their pictures beside z_t are stacked in their order, and everything else is told
    side by side, so that no two may tell the network the same thing. Where parts are told held-out rows, samples have
    the labels of the same rows.

    Args:
        parts: the conditionings; each is dropped by its own `dropout`, and guidance is by those that are. One whose
            `dropout` is 0 is always told.
        dropout: share of training samples of which all parts are dropped at once; then guidance is by all of them.

    Raises:
        ConfigurationError: no parts, or, before training, two that tell the network the same, or samples other rows.
    """

    def __init__(self, parts: Sequence[Conditioning], dropout: float = 0.0) -> None:
        super().__init__(dropout)
        if not parts:
            raise ConfigurationError("Conditions got no parts; expected a list of conditionings.")
        self.parts = nn.ModuleList(parts)
        self.columns = tuple(dict.fromkeys(name for part in self._parts for name in part.columns))
        self.num_rows = next((part.num_rows for part in self._parts if part.num_rows is not None), None)
        kept = [name for name in _NUMBERS if name in self.columns and self.num_rows is not None]
        self.rows = HeldOutRows(kept, self.num_rows or 1)

    @property
    def _parts(self) -> list[Conditioning]:
        return list(self.parts)  # type: ignore[arg-type]

    # --- conditions ------------------------------------------------------------------------------------------------

    def from_batch(self, batch: Batch) -> Condition:
        return self._merged([part.from_batch(self._own(k, batch)) for k, part in enumerate(self._parts)])

    def check_values(self, batch: Batch) -> None:
        for part in self._parts:
            part.check_values(batch)

    def for_samples(self, sample_ids: Tensor) -> Condition:
        rows = self._rows_of(sample_ids)
        return self._merged(
            [part.from_batch(rows) if _read_by(part, rows) else part.for_samples(sample_ids) for part in self._parts]
        )

    def unlike(self, condition: Condition) -> str:
        """None where samples are told rows of the data."""
        parts = self._parts if self.num_rows is None else []
        return "; ".join(told for part in parts if (told := part.unlike(condition)))

    def as_columns(self, sample_ids: Tensor) -> Batch:
        told = {name: value for part in self._parts for name, value in part.as_columns(sample_ids).items()}
        return told | self._rows_of(sample_ids)

    def _rows_of(self, sample_ids: Tensor) -> dict[str, Tensor]:
        return self.rows.batch(sample_ids) if self.rows.chosen else {}

    def null(self, num_samples: int, device: torch.device) -> Condition:
        return self._merged([part.null(num_samples, device) for part in self._parts])

    def without(self, device: torch.device) -> Callable[[Condition], Condition]:
        null = super().without(device)
        if super().knows_null:
            return null
        always = [(names, channels) for part, names, channels in self._places() if not part.knows_null]

        def without(condition: Condition) -> Condition:
            none = null(condition)
            for names, channels in always:
                none = _replaced(none, condition, names, channels)
            return none

        return without

    def for_training(self, batch: Batch) -> Condition:
        parts = [part.for_training(self._own(k, batch)) for k, part in enumerate(self._parts)]
        return self.dropped(self._merged(parts))

    def _merged(self, conditions: Sequence[Condition]) -> Condition:
        """Return all that the parts tell, with the pictures stacked."""
        names = [name for condition in conditions for name in condition if name != CONCAT]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigurationError(
                f"Conditions got {', '.join(part.label for part in self._parts)}, two of which tell the network its "
                f"{twice[0]}; leave out one of them."
            )
        merged = {name: value for condition in conditions for name, value in condition.items()}
        pictures = [condition[CONCAT] for condition in conditions if CONCAT in condition]
        return merged | ({CONCAT: torch.cat(pictures, dim=1)} if pictures else {})

    def swapped(self, condition: Condition, other: Condition) -> dict[str, Condition]:
        return {part.label: _replaced(condition, other, names, channels) for part, names, channels in self._places()}

    def _places(self) -> Iterator[tuple[Conditioning, list[str], slice]]:
        """Yield each part with the names of what it tells beside a picture, and the channels of its picture."""
        channel = 0
        for part in self._parts:
            null = part.null(1, torch.device("cpu"))
            channels = slice(channel, channel := channel + (null[CONCAT].shape[1] if CONCAT in null else 0))
            yield part, [name for name in null if name != CONCAT], channels

    # --- before training -------------------------------------------------------------------------------------------

    def prepare(self, network: nn.Module, data: ConditioningData, codec: LatentCodec) -> None:
        for k, part in enumerate(self._parts):
            part.prepare(network, ChangedRows(data, partial(self._own, k)), codec)
        numbers = {part.label: part.num_rows for part in self._parts if part.num_rows is not None}
        if len(set(numbers.values())) > 1:
            told = ", ".join(f"{label} {number}" for label, number in numbers.items())
            raise ConfigurationError(f"Conditions got parts of different num_rows ({told}); set them to one number.")
        if self.rows.columns:
            self.rows.choose(data)

    def use_codec(self, codec: LatentCodec) -> None:
        for part in self._parts:
            part.use_codec(codec)

    @property
    def hole_column(self) -> str | None:
        return next((part.hole_column for part in self._parts if part.hole_column is not None), None)

    def hidden(self, batch: Batch) -> Tensor | None:
        found = (part.hidden(self._own(k, batch)) for k, part in enumerate(self._parts))
        return next((holes for holes in found if holes is not None), None)

    def enlarged(self, batch: Batch) -> Tensor | None:
        found = (part.enlarged(self._own(k, batch)) for k, part in enumerate(self._parts))
        return next((small for small in found if small is not None), None)

    def assumed(self, data: ConditioningData) -> PlainValues:
        return {name: value for part in self._parts for name, value in part.assumed(data).items()}

    # --- what it says of itself ------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return all(part.ready for part in self._parts)

    @property
    def small_size(self) -> tuple[int, ...] | None:
        return next((part.small_size for part in self._parts if part.small_size is not None), None)

    @property
    def knows_null(self) -> bool:
        return super().knows_null or any(part.knows_null for part in self._parts)

    @property
    def description(self) -> PlainValues:
        described = {key: value for part in self._parts for key, value in part.description.items()}
        rows = [part.description.get("rows", "") for part in self._parts]
        return {**described, "rows": [*rows, self.rows.description] if self.rows.chosen else rows}

    @property
    def label(self) -> str:
        return " and ".join(part.label for part in self._parts)

    @property
    def column_kinds(self) -> dict[str, str]:
        return {name: kind for part in self._parts for name, kind in part.column_kinds.items()}

    @property
    def _texts(self) -> list[Conditioning]:
        return [part for part in self._parts if "prompts" in part.description]

    def set_prompts(self, prompts: Sequence[str]) -> None:
        for part in self._texts:
            part.set_prompts(prompts)
        if not self._texts:
            super().set_prompts(prompts)

    def shown(self, sample_ids: Tensor) -> Shown | None:
        found = [shown for part in self._parts if (shown := part.shown(sample_ids)) is not None]
        if not found:
            return None
        return Shown(torch.cat([_in_color(shown.condition) for shown in found], dim=-1), found[0].truth)

    # --- checkpoints -----------------------------------------------------------------------------------------------

    @property
    def spec(self) -> PlainValues:
        return {"parts": [describe(part) for part in self._parts]}

    @property
    def finetuned_spec(self) -> PlainValues:
        pipeline = self.pipeline_name("UNet2DConditionModel", latents=True, flow=False)
        return {"parts": [describe(part, finetuned=True) for part in self._parts], "pipeline": pipeline}

    @property
    def run_spec(self) -> PlainValues:
        return {**super().run_spec, "parts": [part.run_spec for part in self._parts]}

    @classmethod
    def from_spec(cls, spec: PlainValues, network: nn.Module) -> Conditions:
        return cls([conditioning_of(part, network) for part in spec["parts"]])

    def restore(self, run_spec: PlainValues) -> None:
        super().restore(run_spec)
        for part, own in zip(self._parts, run_spec["parts"], strict=True):
            part.restore(own)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for k, part in enumerate(self._parts):
            yield from ((f"{k}.{name}", weight) for name, weight in part.weights())

    # --- finetuning ------------------------------------------------------------------------------------------------

    def for_finetuning(self, dropout: float, prompts: Sequence[str] | None, train_text_encoder: bool) -> Conditions:
        told = self._texts or self._parts  # which refuse what is of text
        self._knew_null = super().knows_null
        self.dropout = self._checked(dropout) if self._knew_null else 0.0
        for k, part in enumerate(self._parts):
            text = (prompts, train_text_encoder) if part in told else (None, False)
            self.parts[k] = part.for_finetuning(dropout if part.knows_null else 0.0, *text)
        return self

    def check_finetune(self, num_classes: int | None, name: str) -> None:
        for part in self._parts:
            part.check_finetune(num_classes, name)

    @property
    def trained_networks(self) -> list[nn.Module]:
        return [network for part in self._parts for network in part.trained_networks]

    def add_updates(self, updates: Updates) -> None:
        for part in self._texts or self._parts:
            part.add_updates(updates)

    # --- pipelines that are told a picture beside Stable Diffusion's text ------------------------------------------

    def pipeline_name(self, network: str, latents: bool, flow: bool) -> str | None:
        pictures = [part.beside_text for part in self._parts if part.beside_text]
        others = [part.pipeline_name(network, latents, flow) for part in self._parts if not part.beside_text]
        return pictures[0] if latents and len(pictures) == 1 and others == ["StableDiffusionPipeline"] else None

    def check_exportable(self, network: nn.Module, latent_shape: tuple[int, ...]) -> None:
        for part in self._parts:
            part.check_exportable(network, latent_shape)

    def assemble(self, name: str, parts: PlainValues) -> Component:
        own = {key: value for part in self._parts for key, value in part.pipeline_parts.items()}
        return self._texts[0].assemble(name, {**own, **parts})

    def card(self, pipeline: Component, latent_shape: tuple[int, ...]) -> CardPart:
        card = self._texts[0].card(pipeline, latent_shape)
        picture = "".join(part.call_arguments for part in self._parts)
        return replace(card, task="image-to-image", call=f"{card.call}, {picture}", size="")

    # --- cache -----------------------------------------------------------------------------------------------------

    @property
    def frozen_encoder(self) -> FrozenEncoder | None:
        return next((part.frozen_encoder for part in self._parts if part.frozen_encoder is not None), None)

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        return {
            f"{k}_{name}": value for k, part in enumerate(self._parts) for name, value in part.observe(batch).items()
        }

    @property
    def observation_key(self) -> PlainValues:
        return {str(k): part.observation_key for k, part in enumerate(self._parts) if part.observation_key}

    def _own(self, k: int, batch: Batch) -> Batch:
        """Return a batch with what was observed by the part number `k` alone."""
        if "observed" not in batch:
            return batch
        own = {name.removeprefix(f"{k}_"): each for name, each in batch["observed"].items() if name.startswith(f"{k}_")}
        return {**batch, "observed": own}


def _read_by(part: Conditioning, rows: Batch) -> bool:
    """Return whether rows have all that a part reads, and it reads something."""
    return bool(part.columns) and set(part.columns) <= rows.keys()


def _replaced(condition: Condition, other: Condition, names: Sequence[str], channels: slice) -> Condition:
    """Return a condition with these names, and these channels of the picture, of another one."""
    replaced = {**condition, **{name: other[name] for name in names}}
    if channels.stop > channels.start:
        replaced[CONCAT] = condition[CONCAT].clone()
        replaced[CONCAT][:, channels] = other[CONCAT][:, channels]
    return replaced


def _in_color(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
