"""``ldmprobe export``: a checkpoint as the folder of a diffusers pipeline or autoencoder, or its LoRA, with a model
card; written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import atomic_folder
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore, read_or_skip
from ldmprobe.models.autoencoder import decoder_parameters
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.latent_scale import says_scale, scaling_of
from ldmprobe.pretrained.export import as_pipeline
from ldmprobe.pretrained.source import Source
from ldmprobe.probing.denoising_record import PROBE
from ldmprobe.tracking.autoencoder_card import write_autoencoder_card
from ldmprobe.tracking.history import comparable_series
from ldmprobe.tracking.model_card import CARD_RECORDS, write_model_card
from ldmprobe.tracking.run_verdict import judged_records
from ldmprobe.training.checkpoint.checkpoint import Checkpoint


def export(
    checkpoint: Path,
    folder: Path,
    merge: bool = False,
    base: str | None = None,
    per_channel: bool = False,
    ema_length: float | None = None,
    lora_strength: float = 1.0,
) -> Path:
    """Write the model of a checkpoint (with its EMA weights if there are any) to ``folder``: safetensors,
    configurations and ``README.md``, the model card. If the checkpoint lies in a run directory, or in its
    ``checkpoints``, a pipeline's card has the records' numbers and figures.

    A LoRA becomes ``pytorch_lora_weights.safetensors`` and a scheduler, for the pipeline it was finetuned from; an
    autoencoder one of diffusers, with the scale of its latents as it was measured on training images; anything else,
    and a LoRA with ``merge``, a pipeline, for ``DiffusionPipeline.from_pretrained``.

    Args:
        base: as ``Checkpoint.read``'s.
        per_channel: an autoencoder's latents have a scale for each channel.
        ema_length: σ_rel of an average in the place of the checkpoint's own weights, of a run with PostHocEMA; of an
            autoencoder, of one whose encoder was not trained.
        lora_strength: how much of a LoRA is exported; 1 is as trained.

    Returns:
        ``folder``.

    Raises:
        ConfigurationError: with nothing written: ``folder`` has something in it, the checkpoint is not readable, or
            diffusers has no pipeline for its model, or no format for its LoRA; an option is of another kind of model;
            or ``folder`` cannot be written.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigurationError(f"{folder} exists already; choose a new folder to export to.")
    read = Checkpoint.of(Source(str(checkpoint), base=base, ema_length=ema_length, lora_strength=lora_strength))
    if read.is_autoencoder and merge:
        raise ConfigurationError(f"{checkpoint} holds an autoencoder, which has no LoRA; leave out --merge.")
    if per_channel and not read.is_autoencoder:
        raise ConfigurationError(f"{checkpoint} holds a diffusion model; --per-channel is for autoencoders alone.")
    if read.is_autoencoder and ema_length is not None and not _same_latents(read, Checkpoint.read(checkpoint)):
        raise ConfigurationError(
            f"The scale of latents in {checkpoint} was measured with its own weights, and another average of the "
            "encoder has other latents; leave out --ema-length. (Of a run with `train: decoder`, whose averages all "
            "have one encoder, any can be exported.)"
        )
    target = folder.absolute()
    write = _autoencoder(read, target.name, per_channel) if read.is_autoencoder else _pipeline(read, target.name, merge)
    try:
        with atomic_folder(target) as partial:
            write(partial)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"{folder} cannot be written: {reason}. Choose another folder.") from error
    return folder


def _pipeline(read: Checkpoint, name: str, merge: bool) -> Callable[[Path], None]:
    """Return what writes a diffusion model into a folder."""
    model, lora = read.model(), None if merge else read.lora()
    pipeline = as_pipeline(model)

    def write(folder: Path) -> None:
        if lora is None:
            pipeline.save_pretrained(folder, safe_serialization=True)
        else:
            lora.save(folder)
            pipeline.scheduler.save_pretrained(folder / "scheduler")
        write_model_card(folder, name, pipeline, model, _records(read.path, model), read.base, lora)

    return write


def _autoencoder(read: Checkpoint, name: str, per_channel: bool) -> Callable[[Path], None]:
    """Return what writes an autoencoder into a folder."""
    model, moments = read.autoencoder(), read.spec["latents"]
    if not moments:
        raise ConfigurationError(
            f"{read.path} does not know the scale of its latents, which is measured on training images of ImageData "
            "when a checkpoint is saved; train it on ImageData."
        )
    kept = says_scale(model.network.config) and not moments.get("encoder_is_trained", True) and not per_channel
    if not kept:
        model.network.register_to_config(**scaling_of(moments["mean"], moments["std"], per_channel))

    def write(folder: Path) -> None:
        model.network.save_pretrained(folder, safe_serialization=True)
        write_autoencoder_card(folder, name, model, None if kept else moments["images"])

    return write


def _same_latents(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether two autoencoders have the same weights, except for their decoders'."""
    ours, theirs = one.autoencoder().network, other.autoencoder().network
    decoder = {id(parameter) for parameter in decoder_parameters(ours)}
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return all(id(mine) in decoder or torch.equal(mine, yours) for mine, yours in pairs)


def _records(checkpoint: Path, model: DiffusionModel) -> list[ProbeRecord]:
    """Some records of the run directory that the checkpoint lies in, up to its step, the last of each probe and those
    that its verdict is made of whole; none elsewhere.
    """
    for run_dir in checkpoint.absolute().parents[:2]:
        if (run_dir / "probes").is_dir():
            series = comparable_series(RecordStore(run_dir), until=model.trained_steps)
            judged = judged_records(run_dir, model.trained_steps) if series.pop(PROBE, None) else []
            some = [record for each in series.values() for record in each[:-1].thinned(CARD_RECORDS).numbers()]
            lasts = [record for each in series.values() if (record := read_or_skip(each.paths[-1])) is not None]
            return [*judged, *some, *lasts]
    return []
