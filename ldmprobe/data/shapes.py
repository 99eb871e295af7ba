"""builtin:shapes: captioned scenes of colored shapes, with their masks, boxes and maps, filled, outlined or hatched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.types import PlainValues, Rows

if TYPE_CHECKING:
    from PIL.Image import Image

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
STYLES = ("filled", "outline", "hatched")
COLORS = {
    "red": (214, 57, 57),
    "green": (62, 150, 81),
    "blue": (57, 106, 214),
    "yellow": (232, 190, 44),
    "purple": (139, 77, 178),
    "orange": (238, 122, 30),
    "pink": (244, 150, 196),
}
GROUND = (240, 238, 232)
_ZOOM = 4  # drawn large and shrunk, for smooth edges
_LINE, _HATCH = 1.5, 4.0  # width of an outline, and period of the hatching, in pixels
_ATTEMPTS = 50  # to find a shape a place of its own
_MAX_VALUES = 2_000_000_000


def shapes(
    num_images: int = 2000,
    size: int = 32,
    max_shapes: int = 1,
    seed: int = 0,
    shapes: Sequence[str] = SHAPES[:4],
    colors: Sequence[str] = tuple(COLORS)[:5],
    styles: Sequence[str] = STYLES[:1],
    overlap: bool = True,
) -> Rows:
    """Colored shapes on a light ground, drawn anew from `seed`.

    Columns: `image` (RGB), `label` (color and shape of the first shape), `caption` ("a small red circle on the left"),
    `boxes` (K, 4: x0, y0, x1, y1 in pixels), `objects` (the same boxes with the label of each), `mask` (gray image: 0
    ground, k for the k-th shape), `map` (gray image: 0 ground, 1 + number of the shape's color). With several styles
    also `style`, that of the image, and `source`: the same scene in another style.

    Args:
        shapes, colors: drawn from these of `SHAPES` and `COLORS`; by default without "cross", "heart", "orange" and
            "pink", which are left for finetuning.
        styles: drawn from these of `STYLES`.
        overlap: whether shapes may cover each other; where not, one that finds no place is left out.

    Raises:
        ConfigurationError: a size under 8, fewer than one image or shape, or a shape, color or style that there is not.
    """
    from datasets import ClassLabel, Dataset, Features, Image, List, Value

    if size < 8 or num_images < 1 or max_shapes < 1:
        raise ConfigurationError(
            f"builtin:shapes got size {size}, num_images {num_images}, max_shapes {max_shapes}; expected size >= 8, "
            "the others >= 1."
        )
    check_size(num_images, 3, size)
    choices = (("shapes", shapes, SHAPES), ("colors", colors, tuple(COLORS)), ("styles", styles, STYLES))
    for what, chosen, known in choices:
        if isinstance(chosen, str) or not chosen or not set(chosen) <= set(known):
            raise ConfigurationError(
                f"builtin:shapes got {what} {chosen!r}; expected a list of some of {', '.join(known)}."
            )
    names = [f"{color} {shape}" for color in colors for shape in shapes]
    boxes = List(List(Value("float32"), length=4))
    features = Features(
        {
            "image": Image(),
            "label": ClassLabel(names=names),
            "caption": Value("string"),
            "boxes": boxes,
            "objects": {"boxes": boxes, "labels": List(ClassLabel(names=names))},
            "mask": Image(),
            "map": Image(),
            **({"style": ClassLabel(names=list(styles)), "source": Image()} if len(styles) > 1 else {}),
        }
    )
    rows = []
    for i in range(num_images):
        rng = np.random.default_rng((seed, i))
        scene = _scene(rng, size, int(rng.integers(1, max_shapes + 1)), shapes, colors, overlap)
        style, source = _two_of(styles, rng)
        rows.append(_row(scene, size, style))
        if len(styles) > 1:
            rows[-1] |= {"style": style, "source": drawn(scene, size, source)}
    return Dataset.from_dict({key: [row[key] for row in rows] for key in features}, features=features)


def check_size(num_images: int, channels: int, size: int) -> None:
    """Raise ConfigurationError if a built-in dataset would not fit into memory."""
    check_numbers("The built-in dataset", 1, num_images=num_images, channels=channels, size=size)
    if (values := num_images * channels * size**2) > _MAX_VALUES:
        raise ConfigurationError(
            f"The built-in dataset got num_images {num_images} of size {size}, {values:.0e} values in memory; expected "
            f"at most {_MAX_VALUES:.0e}."
        )


def _scene(
    rng: np.random.Generator, size: int, number: int, shapes: Sequence[str], colors: Sequence[str], overlap: bool
) -> list[PlainValues]:
    """Return what is in a scene: shape, color, whether small, x, y and radius of each."""
    scene: list[PlainValues] = []
    for _ in range(number):
        shape, color = str(rng.choice(shapes)), str(rng.choice(colors))
        small = bool(rng.integers(2))
        for _ in range(_ATTEMPTS):
            radius = size * (rng.uniform(0.14, 0.18) if small else rng.uniform(0.24, 0.30))
            x, y = rng.uniform(radius, size - radius, 2)
            apart = (max(abs(x - o["x"]), abs(y - o["y"])) > radius + o["radius"] for o in scene)
            if overlap or all(apart):
                scene.append({"shape": shape, "color": color, "small": small, "x": x, "y": y, "radius": radius})
                break
    return scene


def _two_of(styles: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
    """Return a style, and another one where there are several."""
    if len(styles) == 1:
        return styles[0], styles[0]
    first, second = rng.choice(styles, 2, replace=False)
    return str(first), str(second)


def _row(scene: Sequence[PlainValues], size: int, style: str) -> PlainValues:
    from PIL import Image

    captions = [
        f"a {'small' if each['small'] else 'large'} {each['color']} {each['shape']} on the "
        f"{'left' if each['x'] < size / 2 else 'right'}"
        for each in scene
    ]
    x, y, r = (np.array([each[name] for each in scene]) for name in ("x", "y", "radius"))
    boxes = np.stack([x - r, y - r, x + r, y + r], axis=1).tolist()
    labels = [f"{each['color']} {each['shape']}" for each in scene]
    mask = silhouettes(scene, size)
    color_of = np.array([0, *(1 + list(COLORS).index(each["color"]) for each in scene)], dtype=np.uint8)
    return {
        "image": drawn(scene, size, style),
        "label": labels[0],
        "caption": " and ".join(captions),
        "boxes": boxes,
        "objects": {"boxes": boxes, "labels": labels},
        "mask": mask,
        "map": Image.fromarray(color_of[np.asarray(mask)]),
    }


def _corners(each: PlainValues) -> list[tuple[float, float]]:
    return [
        (_ZOOM * (each["x"] + each["radius"] * u), _ZOOM * (each["y"] + each["radius"] * v))
        for u, v in _outline(each["shape"])
    ]


def drawn(scene: Sequence[PlainValues], size: int, style: str) -> Image:
    """Return the scene in a style."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (size * _ZOOM, size * _ZOOM), GROUND)
    row, column = np.indices((size * _ZOOM, size * _ZOOM))
    stripes = Image.fromarray(((row + column) % (_HATCH * _ZOOM) < _HATCH * _ZOOM / 2).astype(np.uint8) * 255)
    for each in scene:
        corners, color = _corners(each), COLORS[each["color"]]
        if style == "outline":
            ImageDraw.Draw(image).polygon(corners, fill=GROUND, outline=color, width=round(_LINE * _ZOOM))
        elif style == "hatched":
            inside = Image.new("L", image.size)
            ImageDraw.Draw(image).polygon(corners, fill=GROUND)
            ImageDraw.Draw(inside).polygon(corners, fill=255)
            image.paste(color, mask=Image.fromarray(np.minimum(np.asarray(inside), np.asarray(stripes))))
        else:
            ImageDraw.Draw(image).polygon(corners, fill=color)
    return image.resize((size, size), Image.Resampling.BOX)


def silhouettes(scene: Sequence[PlainValues], size: int) -> Image:
    """Return the number of the shape at each pixel, from 1 on; 0 where there is none."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (size * _ZOOM, size * _ZOOM), 0)
    for k, each in enumerate(scene):
        ImageDraw.Draw(mask).polygon(_corners(each), fill=k + 1)
    return mask.resize((size, size), Image.Resampling.NEAREST)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of the shape in [−1, 1]²."""
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "cross":
        arm = [(-0.3, -0.3), (-0.3, -1.0), (0.3, -1.0)]
        return [(x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in arm]
    if shape == "heart":
        u = np.arange(48) * 2 * np.pi / 48
        x, y = 16 * np.sin(u) ** 3, 13 * np.cos(u) - 5 * np.cos(2 * u) - 2 * np.cos(3 * u) - np.cos(4 * u)
        return [(float(a), float(b)) for a, b in zip(x / 17, -(y + 2.5) / 17, strict=True)]
    points = {"circle": 48, "triangle": 3, "star": 10}[shape]
    angles = np.arange(points) * 2 * np.pi / points - np.pi / 2
    radii = np.where(np.arange(points) % 2, 0.45, 1.0) if shape == "star" else np.ones(points)
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]
