"""ldmprobe: train latent diffusion models with Lightning and see, per noise level, what they have learned.

The public names stand in ``__init__.pyi``. Each is imported on first use, so that ``import ldmprobe`` and ``ldmprobe
--help`` do not pay for torch, Lightning and diffusers.
"""

import re
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_MODULE_OF = {name: module for module, name in re.findall(r"^from (\S+) import (\w+)", _STUB, re.MULTILINE)}

__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604 (names, computed)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ldmprobe' has no attribute {name!r}")
    return vars(import_module(_MODULE_OF[name]))[name]
