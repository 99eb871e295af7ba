"""Judges what a model of configs/tasks makes of its conditions, on builtin:shapes; real images set the scale.

    python scripts/judge_tasks.py inpainting runs/tasks/inpainting/checkpoints/last.ckpt

map              mean IoU of the colors in a sample (each pixel's nearest color) with the map that was asked for
inpainting       error of known pixels before they are pasted; the jump across the edge of the hole, as a share of real images'; shape
                 and color right, as `judge_shapes.py` reads them, where at least 30 % of the shape are visible
superresolution  PSNR of the sample made small again against what was asked for; perceptual distance from the held-out image, and
                 error, against bicubic interpolation's; shift of color
sketch           IoU of the outline of what is drawn with the outline that was asked for, a pixel to either side being right, too
layout           share of the boxes with something of the color asked for, whose extent has IoU >= 0.5 with that of the shape asked for, and
                 which is that shape: what is drawn there is nearer to it than to the others; share of what is drawn outside boxes
style            share drawn in the style asked for: a sample is more like the source's shapes so drawn than like those in the other
                 two styles; IoU of the shapes with the source's; share of samples in the source's color
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from judge_shapes import train_classifier
from ldmprobe.data.shapes import COLORS, GROUND, SHAPES, STYLES, drawn, silhouettes
from ldmprobe.features.perceptual import PerceptualLoss
from ldmprobe.inference import sample_images
from ldmprobe.models.conditioning import HeldOutRows
from ldmprobe.models.corruption import downsampled, outlines
from ldmprobe.models.guidance import as_guidance
from ldmprobe.models.pixels import from_bytes
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model
from ldmprobe.types import PlainValues

Rows = dict[str, Tensor]
_PALETTE = torch.tensor([GROUND, *COLORS.values()]) / 127.5 - 1
_STRIPES = torch.tensor([1.0, 0.625, 0.0, 0.375])  # how much of a pixel is hatched, by row + column
_SHAPES = 4  # of builtin:shapes, whose classes are numbered by color and then shape
_CROSS = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]  # a pixel and its neighbors
_VISIBLE = 0.3  # share of a shape that has to be seen for its color and shape to be known


def segmented(images: Tensor) -> Tensor:
    """Return the number of each pixel's nearest color, (N, H, W): 0 the ground, from 1 on those of COLORS."""
    return (images[:, None] - _PALETTE[None, :, :, None, None]).square().sum(2).argmin(1)


def judge_map(samples: Tensor, truth: Tensor, asked: Rows) -> dict[str, float]:
    maps = asked["map"][:, 0].long()

    def mean_iou(images: Tensor) -> float:
        found, ious = segmented(images), []
        for own, wanted in zip(found, maps, strict=True):
            for k in wanted.unique().tolist():
                ious.append(float(((own == k) & (wanted == k)).sum() / ((own == k) | (wanted == k)).sum()))
        return sum(ious) / len(ious)

    return {"mean IoU with the map": mean_iou(samples), "of real images": mean_iou(truth)}


def judge_inpainting(samples: Tensor, truth: Tensor, asked: Rows) -> dict[str, float]:
    hidden = asked["mask"].bool()
    known = (~hidden).expand_as(truth)
    read = train_classifier(truth.shape[-1])
    shape = (segmented(truth) > 0)[:, None]
    visible = (shape & ~hidden).flatten(1).sum(1) >= _VISIBLE * shape.flatten(1).sum(1)
    right = (read(samples) == read(truth)).all(1)
    return {
        "RMSE of known pixels, of [0, 1]": float((samples - truth)[known].square().mean().sqrt() / 2),
        "jump across the edge, of real images'": float(_jump(samples, hidden) / _jump(truth, hidden)),
        f"shape and color right, of {int(visible.sum())}": float(right[visible].float().mean()),
    }


def _jump(images: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean difference of neighbors of which one is hidden."""
    jumps = []
    for axis in (2, 3):
        edge = hidden.narrow(axis, 1, hidden.shape[axis] - 1) != hidden.narrow(axis, 0, hidden.shape[axis] - 1)
        jumps.append(images.diff(dim=axis).abs()[edge.expand_as(images.diff(dim=axis))])
    return torch.cat(jumps).mean()


def judge_superresolution(samples: Tensor, truth: Tensor, asked: Rows) -> dict[str, float]:
    low = from_bytes(asked["low"])
    factor = truth.shape[-1] // low.shape[-1]
    again = downsampled(samples, factor)
    bicubic = F.interpolate(low, size=truth.shape[2:], mode="bicubic").clamp(-1, 1)
    mse = ((again - low) / 2).square().mean()
    apart = PerceptualLoss("builtin:cifar10", 1.0).distance
    return {
        "PSNR of the sample made small, dB": float(-10 * mse.log10()),
        "perceptual distance, of bicubic's": float(apart(samples, truth).mean() / apart(bicubic, truth).mean()),
        "error, of bicubic's": float(
            (samples - truth).square().mean().sqrt() / (bicubic - truth).square().mean().sqrt()
        ),
        "largest shift of a color, of 255": float((again - low).mean((0, 2, 3)).abs().max() * 127.5),
    }


def judge_sketch(samples: Tensor, truth: Tensor, asked: Rows) -> dict[str, float]:
    wanted = asked["sketch"].bool()

    def iou(images: Tensor) -> float:
        drawn = outlines((segmented(images) > 0).long()).bool()
        near_wanted, near_drawn = (F.max_pool2d(each.float(), 3, 1, 1).bool() for each in (wanted, drawn))
        both = (drawn & near_wanted).sum() + (wanted & near_drawn).sum()
        return float(both / (drawn.sum() + wanted.sum()))

    return {"outlines that agree": iou(samples), "of real images": iou(truth)}


def judge_layout(samples: Tensor, truth: Tensor, asked: Rows) -> dict[str, float]:
    objects = asked["objects"]
    alone = torch.cat([torch.full((len(there(boxes)),), len(there(boxes)) == 1) for boxes in objects])

    def right(images: Tensor) -> Tensor:
        pairs = zip(images, objects, strict=True)
        return torch.tensor([box_is_right(image, box) for image, boxes in pairs for box in there(boxes)]).float()

    def outside(images: Tensor) -> float:
        colored = segmented(images) > 0
        number = int(colored.sum())
        for own, boxes in zip(colored, objects, strict=True):
            for x0, y0, x1, y1 in _in_pixels(there(boxes), len(own)):
                own[y0:y1, x0:x1] = False
        return int(colored.sum()) / max(number, 1)

    of_samples, of_real = right(samples), right(truth)
    return {
        "boxes right": float(of_samples.mean()),
        "of real images": float(of_real.mean()),
        f"of the {int(alone.sum())} that are alone": float(of_samples[alone].mean()),
        "drawn outside boxes": outside(samples),
        "by real images": outside(truth),
    }


def there(boxes: Tensor) -> Tensor:
    """Return the boxes (K, 5) of an image that are no padding."""
    return boxes[boxes[:, 4] >= 0]


def _in_pixels(boxes: Tensor, size: int) -> list[list[int]]:
    low, high = (boxes[:, :2] * size).floor(), (boxes[:, 2:4] * size).ceil()
    return torch.cat([low, high], dim=1).long().tolist()


def box_is_right(image: Tensor, box: Tensor) -> bool:
    """Return whether an image (3, H, W) has what a box (x0, y0, x1, y1, class) asks for."""
    size, number = image.shape[-1], int(box[4])
    color, shape = number // _SHAPES, SHAPES[number % _SHAPES]
    x0, y0, x1, y1 = (box[:4] * size).tolist()
    scene = {"x": (x0 + x1) / 2, "y": (y0 + y1) / 2, "radius": (x1 - x0) / 2, "color": list(COLORS)[color]}
    wanted = torch.from_numpy(np.array(silhouettes([{**scene, "shape": shape}], size))) > 0
    found = _connected(segmented(image[None])[0] == 1 + color, _in_pixels(box[None], size)[0])
    return _iou_of_boxes(found, wanted) >= 0.5 and _nearest_shape(image, scene, _in_pixels(box[None], size)[0]) == shape


def _iou_of_boxes(one: Tensor, other: Tensor) -> float:
    """Return the IoU of the boxes around two masks (H, W)."""
    if not (one.any() and other.any()):
        return 0.0
    filled = torch.zeros(2, *one.shape, dtype=torch.bool)
    for each, mask in zip(filled, (one, other), strict=True):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        each[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return float(filled.all(0).sum() / filled.any(0).sum())


def _nearest_shape(image: Tensor, scene: PlainValues, box: list[int]) -> str:
    """Return the shape that the image shows in a box, up to a pixel aside."""
    x0, y0, x1, y1 = box
    distance = {}
    for shape in SHAPES[:_SHAPES]:
        picture = np.asarray(drawn([{**scene, "shape": shape}], image.shape[-1], "filled"))
        template = torch.from_numpy(picture.copy()).permute(2, 0, 1) / 127.5 - 1
        moved = (image.roll((dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
        distance[shape] = min(float((each - template)[:, y0:y1, x0:x1].square().mean()) for each in moved)
    return min(distance, key=distance.__getitem__)


def _connected(mask: Tensor, box: list[int]) -> Tensor:
    """Return the part of a mask (H, W) that is connected with what it has in a box."""
    x0, y0, x1, y1 = box
    part = torch.zeros_like(mask)
    part[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
    return _grown(part, mask)


def _grown(part: Tensor, within: Tensor) -> Tensor:
    """Return what of a mask (H, W) is connected with a part of it."""
    while True:
        grown = (F.max_pool2d(part[None].float(), 3, 1, 1)[0] > 0) & within
        if torch.equal(grown, part):
            return part
        part = grown


def judge_style(samples: Tensor, truth: Tensor, asked: Rows) -> dict[str, float]:
    source, wanted = asked["source"], asked["class_labels"]
    scenes = [whole(a | b) for a, b in zip(segmented(source) > 0, segmented(truth) > 0, strict=True)]
    of_samples, of_source = looks_of(samples, scenes), looks_of(source, scenes)
    pairs = zip((whole(own) for own in segmented(samples) > 0), scenes, strict=True)
    ious = torch.tensor([float((own & scene).sum() / (own | scene).sum()) for own, scene in pairs])
    return {
        "style right": float((of_samples[:, 0] == wanted).float().mean()),
        "IoU with the source, not hatched": float(ious[wanted != STYLES.index("hatched")].mean()),
        "color kept": float((of_samples[:, 1] == of_source[:, 1]).float().mean()),
    }


def whole(colored: Tensor) -> Tensor:
    """Return what is colored (H, W) with what it encloses."""
    ground = F.pad(~colored, (1, 1, 1, 1), value=True)
    outside = torch.zeros_like(ground)
    outside[0, 0] = True
    while True:  # to the sides, and not through the corners of an outline
        grown = (F.conv2d(outside[None, None].float(), _CROSS, padding=1)[0, 0] > 0) & ground
        if torch.equal(grown, outside):
            return ~outside[1:-1, 1:-1]
        outside = grown


def looks_of(images: Tensor, scenes: list[Tensor]) -> Tensor:
    """Return the numbers of style and color in which each image shows the shapes of its scene (H, W), (N, 2): the color by the
    direction in which the image differs from the ground, the style by what is nearest when it is so drawn."""
    found, ground = [], _PALETTE[0].view(3, 1, 1)
    for image, scene in zip(images, scenes, strict=True):
        apart = ((image - ground) * scene).sum((1, 2))
        color = int(F.cosine_similarity(_PALETTE[1:] - _PALETTE[0], apart[None]).argmax())
        row, column = torch.meshgrid(*(torch.arange(length) for length in scene.shape), indexing="ij")
        beside = F.max_pool2d((~scene)[None].float(), 3, 1, 1)[0]
        covered = {"filled": scene.float(), "outline": scene * beside, "hatched": scene * _STRIPES[(row + column) % 4]}
        own = _PALETTE[1 + color].view(3, 1, 1) - ground
        distances = [float((image - ground - covered[style] * own).square().mean()) for style in STYLES]
        found.append((distances.index(min(distances)), color))
    return torch.tensor(found)


JUDGES: dict[str, Callable[[Tensor, Tensor, Rows], dict[str, float]]] = {
    "map": judge_map,
    "inpainting": judge_inpainting,
    "superresolution": judge_superresolution,
    "sketch": judge_sketch,
    "layout": judge_layout,
    "style": judge_style,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=JUDGES)
    parser.add_argument("checkpoint")
    parser.add_argument("--num-steps", type=int, default=25, help="of DDIM")
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    model = load_model(args.checkpoint)
    parts = [each for each in model.conditioning.modules() if isinstance(each, HeldOutRows)]
    if not parts:
        sys.exit(f"The model has {model.conditioning.label}; expected a conditioning with held-out rows.")
    ids = torch.arange(parts[0].num_rows)
    shown = model.conditioning.shown(ids)
    with torch.no_grad():
        told = model.conditioning.for_samples(ids)
    asked = {**told, **parts[0].batch(ids), "source": shown.condition.clamp(-1, 1)}
    how = {"guidance": as_guidance(args.guidance_scale), "batch_size": 64, "seed": args.seed}
    images = sample_images(model, Sampling(len(ids), args.num_steps, **how))
    for name, value in JUDGES[args.task](images.clamp(-1, 1), shown.truth.cpu(), asked).items():
        print(f"{name:44}{value:.3f}")
