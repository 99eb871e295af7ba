"""One run, one directory: checked before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

from ldmprobe.errors import ConfigurationError

_TRACES = ("probes/*.parquet", "checkpoints/*.ckpt", "report.html", "reference.safetensors")


def claim(run_dir: str | Path, resuming: bool) -> Path:
    """Make sure that a run may write into ``run_dir``, creating it.

    Raises:
        ConfigurationError: it holds another run (and this one does not resume it), or cannot be written.
    """
    folder = Path(run_dir)
    if not resuming:
        for pattern in _TRACES:
            if trace := next(folder.glob(pattern), None):
                raise ConfigurationError(
                    f"{folder} already holds a run ({trace.relative_to(folder)}). To go on with it add `--ckpt_path last`; to start "
                    "another choose a new `--run_dir`, or move the old one away."
                )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be created: {error.strerror}. Choose another `--run_dir`."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"There is no permission to write in {folder}. Choose another `--run_dir`.")
    return folder
