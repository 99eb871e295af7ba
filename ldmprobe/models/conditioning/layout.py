"""Layout: boxes with a class each, as tokens that the network attends to and as areas beside z_t."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning.observed import Observed, ObservedConditioning, palette
from ldmprobe.models.conditioning.protocols import ConditioningData
from ldmprobe.models.denoiser import CONCAT, Condition, config_of
from ldmprobe.types import Batch, PlainValues

_CHECKED = 256  # rows of training data that are looked at before training
_NONE = -1  # the class of a place without a box


class Layout(ObservedConditioning):
    """One token a box, of the embedding of its class and Fourier features of its corners (8 frequencies, base 100), by
    the position net of GLIGEN (Li et al., 2023, arXiv:2301.07093, eq. 5), which is trained with the network; places
    without a box have a learned null token. Beside z_t, each box's area is filled with a linear map of its token, as
    SpaText fills areas with embeddings (Avrahami et al., 2023, arXiv:2211.14305): Σ_k a_k(i, j) W token_k, where
    a_k is the share of the place (i, j) of the latents that box k covers. Attention alone learns what to draw, and
    is slow to learn where.

    Args:
        num_classes: of the boxes: 0 … num_classes − 1.
        width: of the tokens, the network's `cross_attention_dim`.
        max_boxes: the most boxes of an image, and the number of tokens.
        filled: channels beside z_t, which the network's `in_channels` count, too; 0 for tokens alone.
        column: the name in batches of the boxes, as an `ObjectsColumn` has them.
        dropout: share of training samples without boxes, for classifier-free guidance.
        num_rows: of how many held-out rows samples have the boxes, in turn.

    Raises:
        ConfigurationError: numbers below 1, or, before training, an image with too many boxes or another class, images
            that all have none, or a network of another width; or, in training, more classes than the numbers of batches
            tell apart: 257 in `bf16-true`, 2,049 in `16-true`.
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        max_boxes: int = 8,
        filled: int = 8,
        column: str = "objects",
        dropout: float = 0.1,
        num_rows: int = 64,
    ) -> None:
        from diffusers.models.embeddings import GLIGENTextBoundingboxProjection

        super().__init__(dropout, num_rows)
        check_numbers("Layout", 1, num_classes=num_classes, width=width, max_boxes=max_boxes)
        check_numbers("Layout", 0, filled=filled)
        self.num_classes, self.width, self.max_boxes = num_classes, width, max_boxes
        self.column, self.columns = column, (column,)
        self.classes = nn.Embedding(num_classes, width)
        self.position_net = GLIGENTextBoundingboxProjection(positive_len=width, out_dim=width)
        self.filled, self.fill = filled, nn.Linear(width, filled, bias=False) if filled else None

    @property
    def settings(self) -> PlainValues:
        return {name: vars(self)[name] for name in ("num_classes", "width", "max_boxes", "filled", "column")}

    @property
    def column_kinds(self) -> dict[str, str]:
        return {self.column: "ObjectsColumn"}

    def observe(self, batch: Batch) -> Observed:
        return {"objects": self._padded(batch[self.column])}

    def condition(self, observed: Observed, ids: Tensor) -> Condition:
        objects = observed["objects"].to(self.classes.weight.device)
        self._check_exact(objects.dtype)
        there = (objects[..., 4] != _NONE).to(objects.dtype)
        classes = self.classes(objects[..., 4].clamp(min=0).long())
        tokens = self.position_net(objects[..., :4], there, positive_embeddings=classes)
        if self.fill is None:
            return {"encoder_hidden_states": tokens}
        areas = covered(objects[..., :4], self.latent_size)
        return {"encoder_hidden_states": tokens, CONCAT: torch.einsum("nkc,nkhw->nchw", self.fill(tokens), areas)}

    def null(self, num_samples: int, device: torch.device) -> Condition:
        return self.condition({"objects": self._padded([torch.empty(0, 5)] * num_samples)}, torch.arange(num_samples))

    def _padded(self, objects: Sequence[Tensor | list[list[float]]]) -> Tensor:
        """Return boxes (N, K, 5) of a list of (k, 5), tensors or, as a cache keeps them, numbers."""
        padded = torch.zeros(len(objects), self.max_boxes, 5)
        self._check_exact(padded.dtype)
        padded[..., 4] = _NONE
        for i, boxes in enumerate(objects):
            each = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 5)
            if len(each) > self.max_boxes:
                raise ConfigurationError(
                    f"An image has {len(each)} boxes, and Layout max_boxes {self.max_boxes}; set it to the most there "
                    "are."
                )
            classes = each[:, 4]
            unknown = classes[(classes < 0) | (classes >= self.num_classes) | (classes % 1 != 0)]
            if len(unknown):
                raise ConfigurationError(
                    f"A box has class {unknown[0]:g}, and Layout num_classes {self.num_classes}, classes 0 to "
                    f"{self.num_classes - 1}; number the classes from 0, and set it to one more than the largest."
                )
            padded[i, : len(each)] = each.to(padded)
        return padded

    def _check_exact(self, dtype: torch.dtype) -> None:
        """Raise ConfigurationError if numbers of this type are too coarse for the classes."""
        exact = round(2 / torch.finfo(dtype).eps)
        if self.num_classes - 1 > exact:
            raise ConfigurationError(
                f"Layout has num_classes {self.num_classes}, and batches are in {str(dtype).removeprefix('torch.')}, "
                f"which rounds whole numbers beyond {exact}; set the trainer's `precision` to bf16-mixed or 32-true."
            )

    def prepare(self, network: nn.Module, data: ConditioningData, codec: LatentCodec) -> None:
        super().prepare(network, data, codec)
        expected = config_of(network).get("cross_attention_dim", self.width)
        if expected != self.width:
            raise ConfigurationError(
                f"{type(network).__name__} has cross_attention_dim {expected}, and Layout width {self.width}; make "
                "them equal."
            )
        seen = torch.cat([self.observed(batch)["objects"] for batch in data.reference_batches(_CHECKED)])
        if bool((seen[..., 4] == _NONE).all()):
            raise ConfigurationError(
                f"None of the first {len(seen)} images has a box in {self.column!r}; expected boxes x0, y0, x1, y1."
            )

    def pictured(self, observed: Observed) -> Tensor:
        height, width = self.image_size
        pictures = torch.full((len(observed["objects"]), 3, height, width), 0.9)
        colors = palette(self.num_classes)
        for picture, objects in zip(pictures, observed["objects"].cpu(), strict=True):
            for x0, y0, x1, y1, number in objects.tolist():
                if number == _NONE:
                    continue
                left, right = round(x0 * (width - 1)), round(x1 * (width - 1))
                top, bottom = round(y0 * (height - 1)), round(y1 * (height - 1))
                color = colors[int(number)].view(3, 1)
                picture[:, top : bottom + 1, left] = picture[:, top : bottom + 1, right] = color
                picture[:, top, left : right + 1] = picture[:, bottom, left : right + 1] = color
        return pictures


def covered(boxes: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return what share of each place of an h × w grid boxes (…, 4) of x0, y0, x1, y1 in [0, 1] cover, (…, h, w)."""
    height, width = size
    x0, y0, x1, y1 = (corner[..., None] for corner in boxes.unbind(-1))
    return _overlap(y0, y1, height)[..., :, None] * _overlap(x0, x1, width)[..., None, :]


def _overlap(low: Tensor, high: Tensor, length: int) -> Tensor:
    """Return what share of each of `length` equal parts of [0, 1] lies between two numbers."""
    part = torch.arange(length, device=low.device)
    return (torch.minimum(high * length, part + 1) - torch.maximum(low * length, part)).clamp(min=0)
