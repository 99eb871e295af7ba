"""Files of tensors with plain values beside them: safetensors whose header holds JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

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
    """Return the tensors, memory-mapped, and the plain values that ``write_tensors`` wrote.

    Raises:
        Exception: of many kinds, by safetensors and json; the file is damaged, or something else.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        values: PlainValues = json.loads(file.metadata()["ldmprobe"])
        return {name: file.get_tensor(name) for name in file.keys()}, values  # noqa: SIM118 (not a dict)
