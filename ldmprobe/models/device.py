"""Moving to a device that may not be there."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.out_of_memory import is_out_of_memory


def move(modules: Iterable[nn.Module], device: str) -> None:
    """Move them to ``device``, such as "cuda", in place.

    Raises:
        ConfigurationError: there is no such device, or it has too little memory.
    """
    try:
        for module in modules:
            module.to(device)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise ConfigurationError(
                f"The model does not fit into the memory of {device!r}; write another device, such as 'cpu'."
            ) from error
        raise ConfigurationError(
            f"There is no device {device!r} here ({str(error).splitlines()[0]}); write 'cpu', or leave it out."
        ) from error
