"""Conditions that are made of a row's own data, and what samples, caches and pages need for it."""

from __future__ import annotations

import colorsys
from abc import abstractmethod
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning.base import Conditioning
from ldmprobe.models.conditioning.held_out_rows import HeldOutRows
from ldmprobe.models.conditioning.protocols import ConditioningData, Shown
from ldmprobe.models.denoiser import Condition
from ldmprobe.types import Batch, PlainValues

Observed = dict[str, Tensor]
"""What is taken of each row of a batch (N, …), by name."""
_TRUTH = "truth_"


class ObservedConditioning(Conditioning):
    """A condition that is made in two steps: `observe` takes of the data what is a function of the row alone, so that a
    cache can keep it, and `condition` makes of this what the network is told. The samples of probes have the conditions
    of distinct held-out rows, which checkpoints hold, each with the latents of its image, the truth.

    Attributes:
        image_size: (H, W) of the images, known once it is prepared.
    """

    _KNOWN_LATER: ClassVar[tuple[str, ...]] = ("image_size", "latent_size")

    def __init__(self, dropout: float, num_rows: int) -> None:
        super().__init__(dropout)
        self.rows, self.num_rows = HeldOutRows(num_rows=num_rows), num_rows
        self.image_size: tuple[int, ...] = ()
        self._latent_size: tuple[int, ...] = ()
        self._codec: tuple[LatentCodec, ...] = ()  # in a tuple, since it is not a part of this module

    # --- what each kind says ---------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def settings(self) -> PlainValues:
        """The constructor's arguments on which conditions depend, as plain values."""

    @abstractmethod
    def condition(self, observed: Observed, ids: Tensor) -> Condition:
        """Return the condition of what was observed.

        Args:
            ids: (N,) of the rows or samples, for what is drawn for each.
        """

    @abstractmethod
    def pictured(self, observed: Observed) -> Tensor:
        """Return what was observed for the eye, as images (N, C or 3, H, W) in [−1, 1]."""

    # --- conditions ------------------------------------------------------------------------------------------------

    def from_batch(self, batch: Batch) -> Condition:
        observed = self.observed(batch)
        first = next(iter(observed.values()))
        return self.condition(observed, batch.get("index", torch.arange(len(first))))

    def for_samples(self, sample_ids: Tensor) -> Condition:
        return self.condition(self._kept(sample_ids, truth=False), sample_ids)

    def observed(self, batch: Batch) -> Observed:
        """Return what a cache has kept of a batch, or else observe it."""
        if "observed" in batch:
            return batch["observed"]
        self.check_columns(batch)
        return self.observe(batch)

    def row_numbers(self, batch: Batch) -> list[int]:
        """Return the numbers of a batch's rows, on which depends what is drawn for them."""
        if "index" not in batch:
            raise ConfigurationError(f"{self.label} draws anew for each row and needs `index`, its number, in batches.")
        return [int(number) for number in batch["index"]]

    # --- before training -------------------------------------------------------------------------------------------

    def use_codec(self, codec: LatentCodec) -> None:
        self._codec = (codec,)

    @property
    def codec(self) -> LatentCodec:
        """The codec of the model that it is part of."""
        if not self._codec:
            raise ConfigurationError(f"{self.label} has no codec yet: it is made ready before training.")
        return self._codec[0]

    def prepare(self, network: nn.Module, data: ConditioningData, codec: LatentCodec) -> None:
        super().prepare(network, data, codec)
        self.use_codec(codec)
        self.image_size, self._latent_size = data.image_shape[1:], codec.latent_shape(data.image_shape)[1:]
        self.rows.choose(data, self._to_keep)

    def _to_keep(self, batch: Batch) -> Batch:
        cached = {name: batch[name] for name in ("latent", "moments") if name in batch}
        truth = cached or self.encoded(batch["image"])
        return self.observed(batch) | {_TRUTH + name: value for name, value in truth.items()}

    def _kept(self, sample_ids: Tensor, truth: bool) -> Observed:
        if not self.ready:
            raise ConfigurationError(
                f"{self.label} has no held-out rows yet, and samples are told what these are; they are chosen before "
                "training, or of the data that a model is probed or sampled with."
            )
        return {
            name.removeprefix(_TRUTH): value
            for name, value in self.rows.batch(sample_ids).items()
            if name.startswith(_TRUTH) == truth
        }

    def encoded(self, images: Tensor) -> Observed:
        """Return images encoded, before the scale of latents, as a cache keeps them."""
        codec = self.codec
        return {codec.unscaled_kind: codec.unscaled(images.to(codec.scale.device))}

    def latents(self, encoded: Observed) -> Tensor:
        """Return the latents of what `encoded` returned."""
        device = self.codec.scale.device
        return self.codec.latents({name: each.to(device) for name, each in encoded.items()}, sample_posterior=False)

    # --- what it says of itself ------------------------------------------------------------------------------------

    def shown(self, sample_ids: Tensor) -> Shown:
        truth = self.codec.decode(self.latents(self._kept(sample_ids, truth=True)))
        return Shown(self.pictured(self._kept(sample_ids, truth=False)).to(truth), truth)

    def resized(self, pictures: Tensor) -> Tensor:
        """Return pictures at the size of images, each of their pixels as a square."""
        return F.interpolate(pictures.float(), size=self.image_size, mode="nearest")

    @property
    def ready(self) -> bool:
        return self.rows.chosen

    @property
    def description(self) -> PlainValues:
        return {**self.settings, "rows": self.rows.description}

    @property
    def observation_key(self) -> PlainValues:
        return {"kind": type(self).__name__, **self.settings}

    @property
    def spec(self) -> PlainValues:
        return {**self.settings, "num_rows": self.rows.num_rows, **self._sizes}

    @property
    def run_spec(self) -> PlainValues:
        return {**super().run_spec, **self._sizes}

    def restore(self, run_spec: PlainValues) -> None:
        super().restore(run_spec)
        self._take_sizes(run_spec)

    @classmethod
    def from_spec(cls, spec: PlainValues, network: nn.Module) -> Self:
        made = cls(**{name: value for name, value in spec.items() if name not in cls._KNOWN_LATER})
        made._take_sizes(spec)
        return made

    @property
    def latent_size(self) -> tuple[int, ...]:
        """(h, w) of the latents.

        Raises:
            ConfigurationError: it is not prepared.
        """
        if not self._latent_size:
            raise ConfigurationError(f"{self.label} does not know its shape yet: it is made ready before training.")
        return self._latent_size

    @property
    def _sizes(self) -> PlainValues:
        return {"image_size": list(self.image_size), "latent_size": list(self._latent_size)}

    def _take_sizes(self, spec: PlainValues) -> None:
        self.image_size, self._latent_size = tuple(spec["image_size"]), tuple(spec["latent_size"])


def palette(number: int) -> Tensor:
    """Return `number` colors (number, 3) in [−1, 1] for classes, evenly around the circle of hues."""
    return torch.tensor([colorsys.hsv_to_rgb(k / number, 0.65, 0.85) for k in range(number)]) * 2 - 1
