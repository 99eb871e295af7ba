"""``ldmprobe export``: a checkpoint as a diffusers pipeline folder, or its LoRA, with a model card; written whole or
not at all.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import atomic_folder
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore, read_or_skip
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.pretrained.export import as_pipeline
from ldmprobe.tracking.history import comparable_series
from ldmprobe.tracking.model_card import CARD_RECORDS, write_model_card
from ldmprobe.training.checkpoint.load import Checkpoint


def export(checkpoint: Path, folder: Path, merge: bool = False, base: str | None = None) -> Path:
    """Write the model of a checkpoint (with its EMA weights if there are any) to ``folder``: safetensors,
    configurations and ``README.md``, the model card. If the checkpoint lies in a run directory, or in its
    ``checkpoints``, the card has the records' numbers and figures.

    A LoRA becomes ``pytorch_lora_weights.safetensors`` and a scheduler, for the pipeline it was finetuned from;
    anything else, and a LoRA with ``merge``, a pipeline, for ``DiffusionPipeline.from_pretrained``.

    Args:
        base: as ``Checkpoint.read``'s.

    Returns:
        ``folder``.

    Raises:
        ConfigurationError: with nothing written: ``folder`` has something in it, the checkpoint is not readable, or
            diffusers has no pipeline for its model, or no format for its LoRA; or ``folder`` cannot be written.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigurationError(f"{folder} exists already; choose a new folder to export to.")
    read = Checkpoint.read(checkpoint, base)
    model, lora = read.model(), None if merge else read.lora()
    pipeline = as_pipeline(model)
    target = folder.absolute()
    try:
        with atomic_folder(target) as partial:
            if lora is None:
                pipeline.save_pretrained(partial, safe_serialization=True)
            else:
                lora.save(partial)
                pipeline.scheduler.save_pretrained(partial / "scheduler")
            write_model_card(partial, target.name, pipeline, model, _records(checkpoint, model), read.base, lora)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"{folder} cannot be written: {reason}. Choose another folder.") from error
    return folder


def _records(checkpoint: Path, model: DiffusionModel) -> list[ProbeRecord]:
    """Some records of the run directory that the checkpoint lies in, up to its step, the last of each probe whole; none
    elsewhere.
    """
    for run_dir in checkpoint.absolute().parents[:2]:
        if (run_dir / "probes").is_dir():
            series = comparable_series(RecordStore(run_dir), until=model.trained_steps).values()
            some = [record for each in series for record in each[:-1].thinned(CARD_RECORDS).numbers()]
            return some + [record for each in series if (record := read_or_skip(each.paths[-1])) is not None]
    return []
