"""What a conditioning meets: the data before training, low-rank updates, a cache, a model card, a page of samples."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ldmprobe.models.denoiser import Condition
from ldmprobe.types import Batch, PlainValues


class ConditioningData(Protocol):
    """The questions that a conditioning may ask of the data, before training.

    Attributes:
        batch_names: the names in its batches.
        num_classes: how many classes the labels have; None without labels.
        image_shape: (C, H, W) of the images.
        checked_captions: the captions of the rows that were read beforehand.
    """

    num_classes: int | None
    image_shape: tuple[int, ...]
    checked_captions: list[str]

    @property
    def batch_names(self) -> Collection[str]: ...

    def reference_batches(self, num_images: int, held_out: bool = False) -> Iterator[Batch]:
        """Yield `num_images` distinct rows, or all there are, in an order that never changes."""


class FrozenEncoder(Protocol):
    """The part of a conditioning that never changes, so that a cache can hold its results.

    Attributes:
        encodes: the name in batches of what it encodes.
        encoder_key: plain values on which its results depend.
        asked: what the samples of probes are to have, and None for the null condition.
        kept: results by what was encoded, each of shape (1, …).
    """

    encodes: str
    kept: dict[str | None, Condition]

    @property
    def encoder_key(self) -> PlainValues: ...

    @property
    def asked(self) -> tuple[str | None, ...]: ...

    def encode(self, values: Sequence[str] | None) -> Condition:
        """Return the condition (N, …) of each value; of None the null condition (1, …)."""


class Updates(Protocol):
    """Low-rank updates, as a conditioning adds them to its encoders."""

    def add_to_text(self, encoder: nn.Module) -> None: ...


@dataclass(frozen=True)
class CardPart:
    """The part of an exported pipeline's model card that is about the conditioning.

    Attributes:
        call: the arguments of an example call.
        size: those of them that say the size of the images.
    """

    task: str = "unconditional-image-generation"
    facts: tuple[tuple[str, str], ...] = ()
    call: str = "batch_size=4"
    size: str = ""


@dataclass(frozen=True)
class Shown:
    """What is shown beside samples.

    Attributes:
        condition: what each sample was told, as images (N, C, H, W) in [−1, 1].
        truth: what each sample may be compared with, likewise.
    """

    condition: Tensor
    truth: Tensor
