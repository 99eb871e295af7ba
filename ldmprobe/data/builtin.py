"""Small data that needs no network: real digits, captioned shapes, and Gaussians with a known answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from ldmprobe.data.shapes import check_size, shapes
from ldmprobe.errors import ConfigurationError
from ldmprobe.types import Rows


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

    check_size(num_images, channels, size)

    rng = np.random.default_rng(seed)
    coefficients = rng.standard_normal((num_images, channels, size, size)) * np.sqrt(
        gaussian_spectrum(size, exponent, floor)
    )
    images = (mean + idctn(coefficients, axes=(2, 3), norm="ortho")).astype(np.float32)
    features = Features({"image": Array3D((channels, size, size), "float32")})
    return Dataset.from_dict({"image": images}, features=features)


def gaussian_spectrum(size: int, exponent: float = 1.0, floor: float = 0.05) -> np.ndarray:
    """Variance of each cosine coefficient of `gaussian`, shape (size, size)."""
    row, column = np.indices((size, size))
    rank = np.empty(size * size)
    rank[np.argsort((row**2 + column**2).ravel(), kind="stable")] = np.arange(1, size * size + 1)
    return (rank**-exponent + floor).reshape(size, size)


_BUILTIN: dict[str, Callable[..., Rows]] = {"digits": digits, "shapes": shapes, "gaussian": gaussian}


def load_builtin(name: str, **kwargs: object) -> Rows:
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
