"""Files of tensors with plain values beside them: safetensors whose header holds JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import atomic_write
from ldmprobe.types import PlainValues

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], values: PlainValues) -> None:
    """Write tensors and plain values, whole or not at all."""
    from safetensors.torch import save

    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as file:
        file.write(save(content, {"ldmprobe": json.dumps(values)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], PlainValues]:
    """Return the tensors, memory-mapped, and the plain values that ``write_tensors`` wrote; to be called within
    ``readable``.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        values: PlainValues = json.loads(file.metadata()["ldmprobe"])
        return {name: file.get_tensor(name) for name in file.keys()}, values  # noqa: SIM118 (not a dict)


@contextmanager
def readable(path: Path, what: str, instead: str) -> Iterator[None]:
    """Raise ConfigurationError where what is read within is damaged or is not ``what`` it should be.

    Args:
        instead: what the user can do.
    """
    try:
        yield
    except Exception as error:  # safetensors, json and torch raise many kinds, all meaning the same
        raise ConfigurationError(
            f"{path} is not readable as {what} ({type(error).__name__}: {error}); {instead}."
        ) from error
