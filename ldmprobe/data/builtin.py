"""Small data that needs no network: real digits, captioned shapes, and Gaussians with a known answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.types import PlainValues, Rows

_MAX_VALUES = 2_000_000_000
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLORS = {
    "red": (214, 57, 57),
    "green": (62, 150, 81),
    "blue": (57, 106, 214),
    "yellow": (232, 190, 44),
    "purple": (139, 77, 178),
    "orange": (238, 122, 30),
    "pink": (244, 150, 196),
}


@cache
def digits() -> Rows:
    """1,797 real handwritten digits, 8×8 gray (Alpaydin & Kaynak, UCI, 1998; through scikit-learn): `image`,
    `label`.
    """
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PILImage
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.clip(data.images * 16, 0, 255).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(k) for k in range(10)])})
    columns = {"image": [PILImage.fromarray(image) for image in pixels], "label": data.target.tolist()}
    return Dataset.from_dict(columns, features=features)


def shapes(
    num_images: int = 2000,
    size: int = 32,
    max_shapes: int = 1,
    seed: int = 0,
    shapes: Sequence[str] = SHAPES[:4],
    colors: Sequence[str] = tuple(COLORS)[:5],
) -> Rows:
    """Colored shapes on a light ground, drawn anew from `seed`.

    Columns: `image` (RGB), `label` (color and shape of the first shape), `caption` ("a small red circle on the left"),
    `boxes` (K, 4: x0, y0, x1, y1 in pixels), `mask` (gray image: 0 ground, k for the k-th shape).

    Args:
        shapes, colors: drawn from these of `SHAPES` and `COLORS`; by default without "cross", "heart", "orange" and
            "pink", which are left for finetuning.

    Raises:
        ConfigurationError: a size under 8, fewer than one image or shape, or a shape or color that there is not.
    """
    from datasets import ClassLabel, Dataset, Features, Image, List, Value

    if size < 8 or num_images < 1 or max_shapes < 1:
        raise ConfigurationError(
            f"builtin:shapes got size {size}, num_images {num_images}, max_shapes {max_shapes}; expected size >= 8, "
            "the others >= 1."
        )
    _check_size(num_images, 3, size)
    for what, chosen, known in (("shapes", shapes, SHAPES), ("colors", colors, tuple(COLORS))):
        if isinstance(chosen, str) or not chosen or not set(chosen) <= set(known):
            raise ConfigurationError(
                f"builtin:shapes got {what} {chosen!r}; expected a list of some of {', '.join(known)}."
            )
    names = [f"{color} {shape}" for color in colors for shape in shapes]
    features = Features(
        {
            "image": Image(),
            "label": ClassLabel(names=names),
            "caption": Value("string"),
            "boxes": List(List(Value("float32"), length=4)),
            "mask": Image(),
        }
    )
    rows = [_draw_shapes(np.random.default_rng((seed, i)), size, max_shapes, shapes, colors) for i in range(num_images)]
    return Dataset.from_dict({key: [row[key] for row in rows] for key in features}, features=features)


def _draw_shapes(
    rng: np.random.Generator, size: int, max_shapes: int, shapes: Sequence[str], colors: Sequence[str]
) -> PlainValues:
    from PIL import Image, ImageDraw

    zoom = 4  # drawn large and shrunk, for smooth edges
    image = Image.new("RGB", (size * zoom, size * zoom), (240, 238, 232))
    mask = Image.new("L", image.size, 0)
    captions, boxes, labels = [], [], []
    for k in range(int(rng.integers(1, max_shapes + 1))):
        shape, color = str(rng.choice(shapes)), str(rng.choice(colors))
        small = bool(rng.integers(2))
        radius = size * (rng.uniform(0.14, 0.18) if small else rng.uniform(0.24, 0.30))
        x, y = rng.uniform(radius, size - radius, 2)
        outline = [(zoom * (x + radius * u), zoom * (y + radius * v)) for u, v in _outline(shape)]
        ImageDraw.Draw(image).polygon(outline, fill=COLORS[color])
        ImageDraw.Draw(mask).polygon(outline, fill=k + 1)
        side = "left" if x < size / 2 else "right"
        captions.append(f"a {'small' if small else 'large'} {color} {shape} on the {side}")
        boxes.append([x - radius, y - radius, x + radius, y + radius])
        labels.append(f"{color} {shape}")
    return {
        "image": image.resize((size, size), Image.Resampling.BOX),
        "label": labels[0],
        "caption": " and ".join(captions),
        "boxes": boxes,
        "mask": mask.resize((size, size), Image.Resampling.NEAREST),
    }


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


def gaussian(
    num_images: int = 4096,
    channels: int = 4,
    size: int = 8,
    exponent: float = 1.0,
    floor: float = 0.05,
    mean: float = 0.0,
    seed: int = 0,
) -> Rows:
    """Gaussian "images" whose every statistic is known: variance i^−exponent + floor along the i-th 2-D cosine
    direction (low frequencies first), the same for each channel; `image` is a float array (C, H, W), taken as it is.

    With the identity codec, the exact denoiser, DDIM path and KL curves are those of `analysis/ideal.py`.
    """
    from datasets import Array3D, Dataset, Features
    from scipy.fft import idctn

    _check_size(num_images, channels, size)

    rng = np.random.default_rng(seed)
    coefficients = rng.standard_normal((num_images, channels, size, size)) * np.sqrt(
        gaussian_spectrum(size, exponent, floor)
    )
    images = (mean + idctn(coefficients, axes=(2, 3), norm="ortho")).astype(np.float32)
    features = Features({"image": Array3D((channels, size, size), "float32")})
    return Dataset.from_dict({"image": images}, features=features)


def _check_size(num_images: int, channels: int, size: int) -> None:
    check_numbers("The built-in dataset", 1, num_images=num_images, channels=channels, size=size)
    if (values := num_images * channels * size**2) > _MAX_VALUES:
        raise ConfigurationError(
            f"The built-in dataset got num_images {num_images} of size {size}, {values:.0e} values in memory; expected "
            f"at most {_MAX_VALUES:.0e}."
        )


def gaussian_spectrum(size: int, exponent: float = 1.0, floor: float = 0.05) -> np.ndarray:
    """Variance of each cosine coefficient of `gaussian`, shape (size, size)."""
    row, column = np.indices((size, size))
    rank = np.empty(size * size)
    rank[np.argsort((row**2 + column**2).ravel(), kind="stable")] = np.arange(1, size * size + 1)
    return (rank**-exponent + floor).reshape(size, size)


_BUILTIN: dict[str, Callable[..., Any]] = {"digits": digits, "shapes": shapes, "gaussian": gaussian}


def load_builtin(name: str, **kwargs: Any) -> Rows:
    """The built-in dataset "digits", "shapes" or "gaussian" as a `datasets.Dataset`; `kwargs` are its parameters.

    Raises:
        ConfigurationError: no such dataset or parameter.
    """
    if name not in _BUILTIN:
        raise ConfigurationError(
            f"There is no built-in dataset {name!r}; expected one of {', '.join(sorted(_BUILTIN))}."
        )
    try:
        return _BUILTIN[name](**kwargs)
    except TypeError as error:
        raise ConfigurationError(f"builtin:{name} does not take these dataset_kwargs: {error}") from error
