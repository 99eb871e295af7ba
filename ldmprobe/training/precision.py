"""Which of the Trainer's precisions a module that keeps its weights in float32 can be trained in."""

from __future__ import annotations

import lightning as L

from ldmprobe.errors import ConfigurationError

_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_precision(trainer: L.Trainer, name: str) -> None:
    """Check that the precision leaves weights in float32, for what is called ``name``.

    Raises:
        ConfigurationError: it does not, saying what to write.
    """
    if trainer.precision not in _PRECISIONS:
        raise ConfigurationError(
            f"{name} got trainer.precision {trainer.precision}; its weights and losses are in float32: write one of "
            f"{', '.join(_PRECISIONS)}."
        )
