"""What a denoiser is told besides z_t and t: from a batch, for a probe's samples, and for "nothing in particular"."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.denoiser import Condition


class Conditioning(nn.Module, ABC):
    """Turns batches and sample numbers into a :data:`Condition`. Image and layout conditioning would be further subclasses."""

    @abstractmethod
    def from_batch(self, batch: dict[str, Any]) -> Condition:
        """The condition of each sample of a batch."""

    @abstractmethod
    def for_samples(self, sample_ids: Tensor) -> Condition:
        """A fixed condition for each of a probe's samples, a function of its number (N,) alone."""

    @abstractmethod
    def null(self, num_samples: int, device: torch.device) -> Condition:
        """The condition that stands for "none", for classifier-free guidance."""

    def for_training(self, batch: dict[str, Any]) -> Condition:
        """The condition of each sample, dropped where classifier-free guidance asks for it."""
        return self.from_batch(batch)

    @property
    def trained(self) -> bool:
        """Whether it has parameters that are trained: then what it says of a sample changes."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def description(self) -> dict[str, Any]:
        """What, beside their numbers, decides the conditions of a probe's samples, as plain values."""
        return {}

    def prepare(self, network: nn.Module, data: Any) -> None:
        """Get ready for this network and data module, before training.

        Raises:
            ConfigurationError: they do not fit.
        """


class Unconditional(Conditioning):
    """No condition."""

    def from_batch(self, batch: dict[str, Any]) -> Condition:
        return {}

    def for_samples(self, sample_ids: Tensor) -> Condition:
        return {}

    def null(self, num_samples: int, device: torch.device) -> Condition:
        return {}


class ClassConditioning(Conditioning):
    """Class labels 0 … num_classes − 1; ``num_classes`` itself is the null class.

    Args:
        num_classes: of the data. The network embeds ``num_classes + 1`` (diffusers U-Nets: ``num_class_embeds``).
        dropout: share of training samples whose label becomes the null class (Ho & Salimans, 2022, arXiv:2207.12598).

    Raises:
        ConfigurationError: dropout outside [0, 1).
    """

    def __init__(self, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigurationError(f"ClassConditioning got num_classes {num_classes}; expected at least 1.")
        if not 0 <= dropout < 1:
            raise ConfigurationError(f"ClassConditioning got dropout {dropout}; expected a number in [0, 1).")
        self.num_classes, self.dropout = num_classes, dropout

    def from_batch(self, batch: dict[str, Any]) -> Condition:
        if "label" not in batch:
            raise ConfigurationError("ClassConditioning needs labels; set the data's `label_column`.")
        return {"class_labels": batch["label"]}

    def for_samples(self, sample_ids: Tensor) -> Condition:
        return {"class_labels": sample_ids % self.num_classes}

    def null(self, num_samples: int, device: torch.device) -> Condition:
        return {"class_labels": torch.full((num_samples,), self.num_classes, device=device)}

    def for_training(self, batch: dict[str, Any]) -> Condition:
        labels = self.from_batch(batch)["class_labels"]
        dropped = torch.rand(labels.shape, device=labels.device, dtype=torch.float32) < self.dropout
        return {"class_labels": torch.where(dropped, self.num_classes, labels)}

    def prepare(self, network: nn.Module, data: Any) -> None:
        data_classes = data.num_classes
        if data_classes is None:
            raise ConfigurationError("ClassConditioning needs labels; set the data's `label_column`.")
        if data_classes > self.num_classes:
            raise ConfigurationError(
                f"A class label is out of range: the data has {data_classes} classes (labels 0 to {data_classes - 1}) but "
                f"ClassConditioning has num_classes {self.num_classes}; set it to {data_classes}."
            )
        config = getattr(network, "config", {})
        classes = config.get("num_embeds_ada_norm")
        if classes is not None and classes != self.num_classes:
            raise ConfigurationError(
                f"{type(network).__name__} has num_embeds_ada_norm {classes}; expected {self.num_classes}, ClassConditioning's "
                "num_classes."
            )
        embeds = config.get("num_class_embeds", self.num_classes + 1)
        if embeds is None or embeds < self.num_classes + 1:
            raise ConfigurationError(
                f"{type(network).__name__} has num_class_embeds {embeds}; expected {self.num_classes + 1}: one for each of the "
                f"{self.num_classes} classes and one for the null class."
            )
