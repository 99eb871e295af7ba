"""Class labels as a condition."""

from __future__ import annotations

import math

import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning.base import Conditioning
from ldmprobe.models.conditioning.protocols import CardPart, ConditioningData
from ldmprobe.models.denoiser import Condition, config_of
from ldmprobe.types import Batch, Component, PlainValues

_BY_CHANCE = 1e-3  # shares of classes that differ so much are no accident
_DIT_NULL_CLASS = 1000  # fixed in DiTPipeline.__call__, whatever the network's number of classes


class ClassConditioning(Conditioning):
    """Class labels 0 … num_classes − 1; `num_classes` itself is the null class.

    Args:
        num_classes: of the data. The network embeds `num_classes + 1` (diffusers U-Nets: `num_class_embeds`).
        dropout: share of training samples whose label becomes the null class.

    Raises:
        ConfigurationError: fewer than one class, or dropout outside [0, 1).
    """

    columns = ("label",)

    def __init__(self, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__(dropout)
        check_numbers("ClassConditioning", 1, num_classes=num_classes)
        self.num_classes = num_classes

    def from_batch(self, batch: Batch) -> Condition:
        self.check_columns(batch)
        if batch["label"].is_cpu:  # no step waits for a device
            self.check_values(batch)
        return {"class_labels": batch["label"]}

    def check_values(self, batch: Batch) -> None:
        self.check_columns(batch)
        low, high = (int(each) for each in batch["label"].aminmax())
        if low < 0 or high >= self.num_classes:
            raise ConfigurationError(
                f"A batch has labels from {low} to {high}, and ClassConditioning num_classes {self.num_classes}, "
                f"classes 0 to {self.num_classes - 1} ({self.num_classes} stands for no class); number the classes "
                "from 0, and set it to how many there are."
            )

    def for_samples(self, sample_ids: Tensor) -> Condition:
        return {"class_labels": sample_ids % self.num_classes}

    def as_columns(self, sample_ids: Tensor) -> Batch:
        return {"label": sample_ids % self.num_classes}

    def null(self, num_samples: int, device: torch.device) -> Condition:
        return {"class_labels": torch.full((num_samples,), self.num_classes, device=device)}

    def unlike(self, condition: Condition) -> str:
        number = condition["class_labels"].cpu().bincount(minlength=self.num_classes)[: self.num_classes].numpy()
        if self.num_classes < 2 or chisquare(number).pvalue > _BY_CHANCE:
            return ""
        low, high = number.min() / number.sum(), number.max() / number.sum()
        return (
            f"samples are of the {self.num_classes} classes in equal shares, and the data's have {low:.1%} to "
            f"{high:.1%} each: of how far samples are from real latents and images, part is that"
        )

    @property
    def most_nats(self) -> float:
        return math.log(self.num_classes)

    def prepare(self, network: nn.Module, data: ConditioningData, codec: LatentCodec) -> None:
        super().prepare(network, data, codec)
        if data.num_classes is not None and data.num_classes > self.num_classes:
            raise ConfigurationError(
                f"A class label is out of range: the data has {data.num_classes} classes (labels 0 to "
                f"{data.num_classes - 1}) but ClassConditioning has num_classes {self.num_classes}; set it to "
                f"{data.num_classes}."
            )
        config = config_of(network)
        classes = config.get("num_embeds_ada_norm")
        if classes is not None and classes != self.num_classes:
            raise ConfigurationError(
                f"{type(network).__name__} has num_embeds_ada_norm {classes}; expected {self.num_classes}, "
                "ClassConditioning's num_classes."
            )
        embeds = config.get("num_class_embeds", self.num_classes + 1)
        if embeds is None or embeds < self.num_classes + 1:
            raise ConfigurationError(
                f"{type(network).__name__} has num_class_embeds {embeds}; expected {self.num_classes + 1}: one for "
                f"each of the {self.num_classes} classes and one for the null class."
            )

    @property
    def spec(self) -> PlainValues:
        return {"num_classes": self.num_classes}

    def check_finetune(self, num_classes: int | None, name: str) -> None:
        if num_classes not in (None, self.num_classes):
            raise ConfigurationError(
                f"{name} knows {self.num_classes} classes and the data has {num_classes}, which would be taken for its "
                f"first {num_classes}; finetune it on data with its own classes. If the labels are its own, set the "
                f"data's `num_classes: {self.num_classes}`."
            )

    # --- DiTPipeline -----------------------------------------------------------------------------------------------

    def pipeline_name(self, network: str, latents: bool, flow: bool) -> str | None:
        return "DiTPipeline" if network == "DiTTransformer2DModel" and not flow else None

    def check_exportable(self, network: nn.Module, latent_shape: tuple[int, ...]) -> None:
        config: Component = network.config
        if config.sample_size != latent_shape[1]:
            raise ConfigurationError(
                f"The DiTTransformer2DModel has sample_size {config.sample_size} and was trained on latents of "
                f"{latent_shape[1]}×{latent_shape[2]}; a DiTPipeline samples in the former."
            )
        if self.num_classes > _DIT_NULL_CLASS:
            raise ConfigurationError(
                f"The model has {self.num_classes:,} classes; a DiTPipeline takes class {_DIT_NULL_CLASS} for the null "
                f"class, so that at most {_DIT_NULL_CLASS:,} export."
            )

    def assemble(self, name: str, parts: PlainValues) -> Component:
        labels = {str(label): str(label) for label in range(self.num_classes)}
        set_num_classes(parts["transformer"], _DIT_NULL_CLASS)
        pipeline = super().assemble(name, {**parts, "id2label": labels})
        pipeline.register_to_config(id2label=labels)
        return pipeline

    def card(self, pipeline: Component, latent_shape: tuple[int, ...]) -> CardPart:
        classes = f"{self.num_classes:,}; every other up to 1,000 is the null class"
        return CardPart(facts=(("Classes", classes),), call="class_labels=[0, 1], guidance_scale=1.0")


def conditioning_of_pipeline(network: Component, num_classes: int) -> ClassConditioning:
    """Return a pipeline's conditioning, and drop the classes that ``assemble`` padded its network with."""
    if network.config.get("num_embeds_ada_norm", num_classes) > num_classes:
        set_num_classes(network, num_classes)
    return ClassConditioning(num_classes)


def drop_no_labels_(network: nn.Module) -> None:
    """Have a DiT drop no labels by itself, in place: in training it drops a tenth of them, others in each block, beside
    those that the conditioning's `dropout` drops. Its tables keep their row of the null class.
    """
    for table in _label_embeddings(network):
        table.dropout_prob = 0.0


def set_num_classes(transformer: Component, num_classes: int) -> None:
    """Give a DiT another number of classes, in place: those beyond are dropped, those that it lacks become the null
    class, the last row of each table of embeddings.
    """
    for table in _label_embeddings(transformer):
        rows = table.embedding_table.weight.detach()
        kept, null = rows[:-1][:num_classes], rows[-1:]
        rows = torch.cat([kept, null.expand(num_classes + 1 - len(kept), -1)])
        table.embedding_table = nn.Embedding.from_pretrained(rows, freeze=False)
        table.num_classes = num_classes
    transformer.register_to_config(num_embeds_ada_norm=num_classes)


def _label_embeddings(network: nn.Module) -> list[Component]:
    """Return the tables of class embeddings of a DiT, one a block; none of another network."""
    from diffusers.models.embeddings import LabelEmbedding

    return [module for module in network.modules() if isinstance(module, LabelEmbedding)]
