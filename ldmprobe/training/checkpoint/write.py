"""Writing checkpoints whole or not at all, and never unpickling them blindly."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import atomic_write
from ldmprobe.types import StateDict


class AtomicCheckpointIO(TorchCheckpointIO):
    """Save Lightning's checkpoints atomically, streamed to the disk rather than copied in memory, and load them with
    ``weights_only``.

    ``weights_only`` can be set to False. Addresses of other file systems (``s3://…``) are left to Lightning.

    Raises:
        ConfigurationError: the disk is full or cannot be written (what was there before is kept), or a checkpoint to be
            loaded holds more than tensors and plain values.
    """

    def save_checkpoint(self, checkpoint: StateDict, path: str | Path, storage_options: object = None) -> None:
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        failed: OSError | None = None
        try:
            with atomic_write(Path(path)) as file:
                writer = _Remembering(file)
                try:
                    torch.save(checkpoint, writer)  # type: ignore[arg-type]
                finally:
                    failed = writer.error
        except (OSError, RuntimeError) as error:
            if isinstance(cause := failed or error, OSError):
                raise ConfigurationError(
                    f"{path} could not be written: {cause.strerror}. The checkpoints before it are kept; make room, "
                    "then go on with `--ckpt_path last`."
                ) from error
            raise

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> StateDict:
        try:
            return super().load_checkpoint(path, map_location, weights_only is not False)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            raise ConfigurationError(
                f"{path} holds more than tensors and plain values{f' ({named[1]})' if named else ''}: loading it may "
                "run code that it brings along. If you trust where it comes from, add `--weights_only false`."
            ) from error


class _Remembering:
    """A file that remembers the OSError that torch's writer replaces by a RuntimeError."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()
