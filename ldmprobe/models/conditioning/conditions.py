"""Conditions: several conditionings of one network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning.base import Conditioning, conditioning_of, describe
from ldmprobe.models.conditioning.protocols import ConditioningData, FrozenEncoder, Shown
from ldmprobe.models.denoiser import CONCAT, Condition
from ldmprobe.types import Batch, PlainValues


class Conditions(Conditioning):
    """Several conditionings at once: their pictures beside z_t are stacked in their order, and everything else is told
    side by side, so that no two may tell the network the same thing.

    Args:
        parts: the conditionings; each is dropped by its own `dropout`.
        dropout: share of training samples of which all parts are dropped at once.

    Raises:
        ConfigurationError: no parts, or, before training, two that tell the network the same.
    """

    def __init__(self, parts: Sequence[Conditioning], dropout: float = 0.0) -> None:
        super().__init__(dropout)
        if not parts:
            raise ConfigurationError("Conditions got no parts; expected a list of conditionings.")
        self.parts = nn.ModuleList(parts)
        self.columns = tuple(dict.fromkeys(name for part in self._parts for name in part.columns))

    @property
    def _parts(self) -> list[Conditioning]:
        return list(self.parts)  # type: ignore[arg-type]

    # --- conditions ------------------------------------------------------------------------------------------------

    def from_batch(self, batch: Batch) -> Condition:
        return _merged([part.from_batch(self._own(k, batch)) for k, part in enumerate(self._parts)])

    def for_samples(self, sample_ids: Tensor) -> Condition:
        return _merged([part.for_samples(sample_ids) for part in self._parts])

    def null(self, num_samples: int, device: torch.device) -> Condition:
        return _merged([part.null(num_samples, device) for part in self._parts])

    def for_training(self, batch: Batch) -> Condition:
        parts = [part.for_training(self._own(k, batch)) for k, part in enumerate(self._parts)]
        return self.dropped(_merged(parts))

    def swapped(self, condition: Condition, other: Condition) -> dict[str, Condition]:
        swapped, channel = {}, 0
        for part in self._parts:
            null = part.null(1, torch.device("cpu"))
            told = {**condition, **{name: other[name] for name in null if name != CONCAT}}
            if CONCAT in null:
                channels = slice(channel, channel := channel + null[CONCAT].shape[1])
                told[CONCAT] = condition[CONCAT].clone()
                told[CONCAT][:, channels] = other[CONCAT][:, channels]
            swapped[part.label] = told
        return swapped

    # --- before training -------------------------------------------------------------------------------------------

    def prepare(self, network: nn.Module, data: ConditioningData, codec: LatentCodec) -> None:
        for k, part in enumerate(self._parts):
            part.prepare(network, _DataOfPart(data, partial(self._own, k)), codec)
        names = [name for part in self._parts for name in part.null(1, codec.scale.device) if name != CONCAT]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigurationError(
                f"Conditions got {', '.join(part.label for part in self._parts)}, two of which tell the network its "
                f"{twice[0]}; leave out one of them."
            )

    def use_codec(self, codec: LatentCodec) -> None:
        for part in self._parts:
            part.use_codec(codec)

    # --- what it says of itself ------------------------------------------------------------------------------------

    @property
    def knows_null(self) -> bool:
        return super().knows_null or all(part.knows_null for part in self._parts)

    @property
    def description(self) -> PlainValues:
        described = {key: value for part in self._parts for key, value in part.description.items()}
        return {**described, "rows": [part.description.get("rows", "") for part in self._parts]}

    @property
    def label(self) -> str:
        return " and ".join(part.label for part in self._parts)

    @property
    def column_kinds(self) -> dict[str, str]:
        return {name: kind for part in self._parts for name, kind in part.column_kinds.items()}

    def set_prompts(self, prompts: Sequence[str]) -> None:
        takes_text = [part for part in self._parts if "prompts" in part.description]
        for part in takes_text:
            part.set_prompts(prompts)
        if not takes_text:
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

    @property
    def trained_networks(self) -> list[nn.Module]:
        return [network for part in self._parts for network in part.trained_networks]

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


class _DataOfPart:
    """Data whose batches have what one part of several has observed."""

    def __init__(self, data: ConditioningData, own: Callable[[Batch], Batch]) -> None:
        self.data, self.own = data, own
        self.num_classes, self.image_shape = data.num_classes, data.image_shape
        self.checked_captions, self.batch_names = data.checked_captions, data.batch_names

    def reference_batches(self, num_images: int, held_out: bool = False) -> Iterator[Batch]:
        """Yield the same rows."""
        return map(self.own, self.data.reference_batches(num_images, held_out))


def _merged(conditions: Sequence[Condition]) -> Condition:
    """Return all that is told, with the pictures stacked."""
    merged = {name: value for condition in conditions for name, value in condition.items()}
    pictures = [condition[CONCAT] for condition in conditions if CONCAT in condition]
    return merged | ({CONCAT: torch.cat(pictures, dim=1)} if pictures else {})


def _in_color(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
