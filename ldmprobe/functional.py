"""probe: every probe there is, from a training loop of one's own. What the callbacks do in a Trainer, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.run_directory import locked
from ldmprobe.io.store import RecordStore
from ldmprobe.models.codec import IMAGES, LatentCodec
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import encode_images
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.real_data import loaders_in, read_beside, reference_at
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from ldmprobe.types import Batch


def probe(
    model: DiffusionModel,
    run_dir: str | Path,
    step: int,
    real: Tensor | Iterable[object] | None = None,
    held_out: Tensor | Iterable[object] | None = None,
    *,
    num_samples: int = 256,
    num_steps: int = 50,
    num_draws: int = 512,
    num_reference: int = 4096,
    batch_size: int = 256,
    seed: int = 0,
    overwrite: bool = False,
) -> list[ProbeRecord]:
    """Probe ``model`` and put the records into ``run_dir/probes``; call it before the first optimizer step and every so
    many. Training goes on bit-identically. ``ldmprobe.write_report(run_dir)`` makes the page.

    Data are a Tensor (N, C, H, W), or batches as a DataLoader gives them: Tensors, ``(image, label)``, or dicts with
    ``image``. What has the model's latent shape is taken as latents; anything else as images in [−1, 1], which the
    model's codec encodes.

    With several processes, call it on one of them.

    Args:
        model: whose weights are probed as they are now; for a moving average, put that into the network first.
        run_dir: one run's. Records of ``step`` and later, from before a resume, are moved to ``run_dir/superseded``.
        step: optimizer steps taken so far.
        real: training data, for the ideal curves and all that is compared with them. Read at the first call; what is
            fitted on it stays in ``run_dir/reference.safetensors``.
        held_out: data that training does not see, in a fixed order, for the denoising probe. Read at every call.
        num_samples: sampled by the DDIM probe, at least 8.
        num_steps: of DDIM.
        num_draws: noised latents per level of the denoising probe, at least 32, of as many held-out ones.
        num_reference: how many of ``real`` are read.
        batch_size: latents through the network, or images through the codec, at once.
        seed: of the noise, the same at every call.
        overwrite: whether ``step`` 0 may begin anew in a ``run_dir`` that holds a run, as a notebook's cell does that
            is run twice: its records are moved to ``run_dir/superseded``, and ``real`` is read again.

    Returns:
        The record "ddim", and with held-out data "denoising".

    Raises:
        ConfigurationError: before anything is written: ``step`` is 0 and ``run_dir`` holds a run that is not to be
            overwritten; a number is out of range; data are missing, or their latents not shaped like the model's.
    """
    if not isinstance(model, DiffusionModel):
        raise ConfigurationError(
            f"probe got a {type(model).__name__}; expected `ldmprobe.DiffusionModel(network, scheduler, "
            "latent_shape=(C, H, W))`."
        )
    if held_out is not None and real is None:
        raise ConfigurationError(
            "held_out is judged against the best linear denoiser of real data; give `real` as well."
        )
    if isinstance(held_out, Iterator):
        raise ConfigurationError(
            f"held_out is a {type(held_out).__name__}, which can be read only once; give a Tensor, a list of batches "
            "or a DataLoader."
        )
    sampling = Sampling(num_samples, num_steps, batch_size=batch_size, seed=seed)
    with locked(run_dir, resuming=step > 0 or overwrite, option="run_dir") as folder:
        anew = step == 0 and overwrite
        return _probe_into(folder, model, step, real, held_out, sampling, num_draws, num_reference, anew)


def _probe_into(
    run_dir: Path,
    model: DiffusionModel,
    step: int,
    real: Tensor | Iterable[object] | None,
    held_out: Tensor | Iterable[object] | None,
    sampling: Sampling,
    num_draws: int,
    num_reference: int,
    anew: bool,
) -> list[ProbeRecord]:
    batch_size, seed = sampling.batch_size, sampling.seed
    path, store = run_dir / "reference.safetensors", RecordStore(run_dir)
    reference, unseen = None, None
    kept = path.exists() and not anew
    with evaluating(model.modules):
        if real is not None or kept:
            batches = _latent_batches(model, () if real is None else real, num_reference, batch_size)
            images = (batch["image"] for batch in batches)  # of which none is read where there is a reference
            reference = reference_at(path if kept else None, model, lambda: encode_images(LatentCodec(), images))
        if held_out is not None:
            batches = _latent_batches(model, held_out, num_draws, batch_size)
            unseen = HeldOut.encode(LatentCodec(), model.conditioning, batches)
        records = [probe_sampling(model, reference, sampling, held_out=unseen, step=step)]
        if reference is not None and unseen is not None:
            records.append(
                probe_denoising(
                    model,
                    unseen,
                    reference,
                    num_draws=num_draws,
                    batch_size=batch_size,
                    seed=seed,
                    step=step,
                    previous=store.last_before("denoising", step),
                )
            )
    if not kept:
        path.unlink(missing_ok=True)
    if reference is not None and not kept:
        reference.save(path)
    store.set_aside(after=step - 1)
    for record in records:
        store.append(record)
    return records


def _latent_batches(
    model: DiffusionModel, data: Tensor | Iterable[object], num_images: int, batch_size: int
) -> Iterator[Batch]:
    """Batches whose ``image`` are latents, whatever they were."""
    loader = data.split(batch_size) if isinstance(data, Tensor) else data
    for batch in read_beside(loaders_in(loader), num_images):
        got = z = batch["image"]
        if tuple(z.shape[1:]) != tuple(model.latent_shape):
            z = encode_images(model.codec, [z])
        if tuple(z.shape[1:]) != tuple(model.latent_shape):
            raise ConfigurationError(
                f"Data of shape {tuple(got.shape[1:])} become latents of shape {tuple(z.shape[1:])}, the model's are "
                f"{tuple(model.latent_shape)}; give latents of that shape, or images and the model's "
                "`codec=ldmprobe.LatentCodec(vae)`."
            )
        yield {**{name: value for name, value in batch.items() if name not in IMAGES}, "image": z.cpu()}
