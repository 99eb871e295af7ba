"""NaN and Inf in a training step: seen by one reduction, then named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ldmprobe.analysis.bands import bands_of
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.probe import evaluating
from ldmprobe.types import Batch


class Fault(NamedTuple):
    """The place of a NaN or Inf: ``kind`` is "images", "latents", "parameter", "loss" or "gradient"; ``place`` names
    it.
    """

    kind: str
    place: str


def not_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Return whether some entry of some tensor is NaN or Inf, as a boolean on their device, which nobody waits for. The
    largest magnitude of each tells, and cannot overflow. Of a sharded tensor only this rank's part is looked at.
    """
    parts = [part for part in map(_local, tensors) if part.numel()]
    if not parts:
        return torch.tensor(False)
    largest = torch._foreach_norm(parts, torch.inf)
    return ~torch.stack([norm.to(largest[0]) for norm in largest]).isfinite().all()


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether every entry of every tensor is finite."""
    return not bool(not_finite(tensors))


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or Inf in it."""
    return next((name for name, tensor in named if not all_finite([tensor])), None)


def find_fault(model: DiffusionModel | None, module: nn.Module, outputs: object, batch: object) -> Fault | None:
    """The first of images, latents, parameters and loss that is not finite.

    Args:
        model: its codec encodes the images once more; None where there is none to look at.
        module: whose parameters are looked through.
        outputs: of ``training_step``: the loss, or a dict with ``loss`` and, for the band, ``epsilon_mse`` and
            ``log_snr`` (N,).
        batch: what it was given: a dict with ``image`` (N, C, H, W) and, for the rows, ``index``.
    """
    samples = describe_samples(outputs)
    columns: Batch = batch if isinstance(batch, dict) else {}
    images = columns.get("image")
    if images is not None and (lost := _samples_not_finite(images)):
        return Fault("images", f"the images of {_rows(columns, lost)}{samples}")
    if images is not None and model is not None:
        with evaluating(model.modules):
            latents = model.codec.encode(images, sample_posterior=False)
        if lost := _samples_not_finite(latents):
            return Fault("latents", f"the latents of {_rows(columns, lost)}{samples}")
    if name := first_not_finite(module.named_parameters()):
        return Fault("parameter", f"parameter {name}{samples}")
    if not all_finite(loss_of(outputs)):
        return Fault("loss", f"the loss{samples}")
    return None


def loss_of(outputs: object) -> list[Tensor]:
    """The loss in a ``training_step``'s outputs, if there is one."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    return [loss] if isinstance(loss, Tensor) else []


def describe_samples(outputs: object) -> str:
    """Return how many samples have no finite error, and their bands of log-SNR; empty where none has, or there are no
    such outputs.
    """
    if not (isinstance(outputs, dict) and "epsilon_mse" in outputs and "log_snr" in outputs):
        return ""
    lost = ~outputs["epsilon_mse"].detach().isfinite().cpu()
    if not bool(lost.any()):
        return ""
    bands = bands_of(outputs["log_snr"].detach().double().cpu()[lost].numpy())
    where = ", ".join(band.name for band in bands)
    return f" ({int(lost.sum())} of {len(lost)} samples, at log-SNR {where})"


def _samples_not_finite(tensor: Tensor) -> list[int]:
    return (~tensor.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()


def _rows(batch: Batch, positions: list[int]) -> str:
    """Row numbers of the dataset where the batch has them, else positions in the batch."""
    if "index" in batch:
        return "row " + ", ".join(str(int(batch["index"][i])) for i in positions)
    return "sample " + ", ".join(str(i) for i in positions) + " of the batch"


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, or the tensor itself."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
