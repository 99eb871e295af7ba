"""Corruption: what pictures to be restored, filled in or drawn after are made of.

Pure functions of images, of the numbers of their rows and of a seed: a row has the same mask in every epoch, on every
rank and in a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldmprobe.errors import ConfigurationError

Downsampling = Literal["box", "bicubic", "blur"]
Cells = Literal["any", "nearest"]
MaskFamily = Literal["boxes", "strokes", "halves", "all"]  # a box, strokes of a brush, one side of a line, or all
_BLUR, _NOISE = (0.2, 1.2), 0.04  # of "blur": σ in pixels of the small image, and the most noise, of values in [−1, 1]


# --- low resolution --------------------------------------------------------------------------------------------------


def downsampled(
    images: Tensor, factor: int, how: Downsampling = "box", rows: Sequence[int] = (), seed: int = 0
) -> Tensor:
    """Return images (N, C, H, W) at H/factor × W/factor: by the mean over cells; by a bicubic filter without aliasing;
    or by a random Gaussian blur, the mean over cells and random noise, drawn for each of `rows` (a small part of
    Zhang et al., 2021, arXiv:2103.14006).
    """
    if how == "bicubic":
        size = [side // factor for side in images.shape[2:]]
        return F.interpolate(images, size, mode="bicubic", antialias=True)
    if how == "box":
        return F.avg_pool2d(images, factor)
    small = []
    for image, row in zip(images, rows, strict=True):
        rng = np.random.default_rng((seed, row))
        blurred = _blurred(image, factor * float(rng.uniform(*_BLUR)))
        low = F.avg_pool2d(blurred, factor)
        noise = torch.from_numpy(rng.standard_normal(low.shape, dtype=np.float32)).to(low)
        small.append(low + float(rng.uniform(0, _NOISE)) * noise)
    return torch.stack(small)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Return an image (C, H, W) convolved with a Gaussian, its edges repeated."""
    reach = min(int(3 * sigma + 1), *(side - 1 for side in image.shape[1:]))
    x = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    kernel = (-(x**2) / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    padded = F.pad(image[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]


# --- masks: 1 is to be filled ----------------------------------------------------------------------------------------


def check_masks(owner: str, families: Sequence[MaskFamily], share: Sequence[float]) -> None:
    """Raise ConfigurationError if these arguments of `owner` are no families and shares of random masks."""
    if isinstance(families, str) or not families or not set(families) <= set(get_args(MaskFamily)):
        raise ConfigurationError(
            f"{owner} got families {families!r}; expected a list of some of {', '.join(get_args(MaskFamily))}."
        )
    if not 0 < share[0] <= share[1] <= 1:
        raise ConfigurationError(
            f"{owner} got share {list(share)}; expected [least, largest] in (0, 1], the hidden share of the image."
        )


def random_masks(
    rows: Sequence[int], size: tuple[int, int], families: Sequence[MaskFamily], share: Sequence[float], seed: int = 0
) -> Tensor:
    """Return a mask for each row, uint8 (N, 1, H, W), of a random family that hides a random share of the image."""
    masks = []
    for row in rows:
        rng = np.random.default_rng((seed, row))
        family = families[int(rng.integers(len(families)))]
        hidden = float(rng.uniform(share[0], share[1]))
        draw = {"boxes": _box, "strokes": _strokes, "halves": _half}
        masks.append(draw[family](rng, size, hidden) if family in draw else np.ones(size, bool))
    return torch.from_numpy(np.stack(masks)[:, None].astype(np.uint8))


def _box(rng: np.random.Generator, size: tuple[int, int], share: float) -> np.ndarray:
    height, width = size
    area = share * height * width
    h = np.clip(round(float(np.sqrt(area * np.exp(rng.uniform(-0.7, 0.7)))), 0), np.ceil(area / width), height)
    h, w = int(h), int(np.clip(round(area / max(h, 1)), 1, width))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    mask = np.zeros(size, bool)
    mask[top : top + h, left : left + w] = True
    return mask


def _half(rng: np.random.Generator, size: tuple[int, int], share: float) -> np.ndarray:
    row, column = np.indices(size)
    angle = rng.uniform(0, 2 * np.pi)
    along = row * np.sin(angle) + column * np.cos(angle)
    return along <= np.quantile(along, share)


def _strokes(rng: np.random.Generator, size: tuple[int, int], share: float) -> np.ndarray:
    from PIL import Image, ImageDraw

    height, width = size
    mask = Image.new("1", (width, height))
    draw = ImageDraw.Draw(mask)
    x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * np.pi)
    while np.asarray(mask).mean() < share:
        brush, length = max(1, round(rng.uniform(0.06, 0.16) * min(size))), rng.uniform(0.1, 0.4) * min(size)
        angle += rng.uniform(-1.2, 1.2)
        to_x, to_y = np.clip(x + length * np.cos(angle), 0, width), np.clip(y + length * np.sin(angle), 0, height)
        draw.line((x, y, to_x, to_y), fill=1, width=brush)
        draw.ellipse((to_x - brush / 2, to_y - brush / 2, to_x + brush / 2, to_y + brush / 2), fill=1)
        x, y = (to_x, to_y) if rng.random() < 0.8 else (rng.uniform(0, width), rng.uniform(0, height))
    return np.asarray(mask)


def at_cells(masks: Tensor, size: tuple[int, ...], cells: Cells = "any") -> Tensor:
    """Return masks (N, 1, H, W) at h × w: a cell is hidden where any pixel of it is, so that none of a cut cell is
    taken for known; or where its first pixel is ("nearest").
    """
    masks = masks.float()
    return F.adaptive_max_pool2d(masks, size) if cells == "any" else F.interpolate(masks, size=size, mode="nearest")


def filled(images: Tensor, masks: Tensor, value: float = 0.0) -> Tensor:
    """Return images whose hidden pixels are `value`, whatever they were: nothing of them is left to be encoded."""
    return torch.where(masks.bool(), images.new_tensor(value), images)


def pasted(samples: Tensor, images: Tensor, masks: Tensor, feather: int = 0) -> Tensor:
    """Return samples with the known pixels of images in their place.

    Args:
        feather: pixels over which the one goes over into the other, outwards of the hole.
    """
    weight = masks.float()
    if feather:
        width = 2 * feather + 1
        grown = F.max_pool2d(weight, width, stride=1, padding=feather)
        weight = torch.maximum(weight, F.avg_pool2d(grown, width, stride=1, padding=feather, count_include_pad=False))
    return weight * samples + (1 - weight) * images


# --- drawings --------------------------------------------------------------------------------------------------------


def edges(images: Tensor, quantile: float = 0.85) -> Tensor:
    """Return where the gradient of the gray image is larger than at a share of `quantile` of its pixels, and not 0:
    uint8 (N, 1, H, W).
    """
    gray = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = gray[:, :, 1:-1, 2:] - gray[:, :, 1:-1, :-2]
    down = gray[:, :, 2:, 1:-1] - gray[:, :, :-2, 1:-1]
    size = torch.hypot(across, down)
    least = size.flatten(1).quantile(quantile, dim=1).view(-1, 1, 1, 1)
    return ((size >= least) & (size > 1e-3)).byte()


def outlines(masks: Tensor) -> Tensor:
    """Return the inner edge of each region of masks (N, H, W), but that of the ground, 0: uint8 (N, 1, H, W)."""
    labels = F.pad(masks[:, None].float(), (1, 1, 1, 1), mode="replicate")
    inner = labels[:, :, 1:-1, 1:-1]
    height, width = inner.shape[2:]
    neighbors = ((0, 1), (2, 1), (1, 0), (1, 2))
    differs = torch.stack([labels[:, :, i : i + height, j : j + width] != inner for i, j in neighbors]).any(0)
    return (differs & (inner > 0)).byte()


def sketched(lines: Tensor, rows: Sequence[int], seed: int, gaps: float = 0.0, thickness: int = 1) -> Tensor:
    """Return lines (N, 1, H, W) as by hand: each row's of a random thickness up to `thickness` pixels, with a share of
    `gaps` of the image's eighths left out.
    """
    drawn = []
    for line, row in zip(lines, rows, strict=True):
        rng = np.random.default_rng((seed, row))
        width = int(rng.integers(1, thickness + 1))
        thick = F.max_pool2d(F.pad(line.float(), (0, width - 1, 0, width - 1)), width, stride=1)
        kept = torch.from_numpy((rng.random((1, 1, 8, 8)) >= gaps).astype(np.float32)).to(thick)
        drawn.append(thick * F.interpolate(kept, size=line.shape[1:], mode="nearest")[0])
    return torch.stack(drawn).byte()
