"""The precision probe: what a network loses, noise level by noise level, by being kept in fewer bits.

The same held-out latents with the same noise go through the network and through copies of it in other formats; what is
lost is the paired difference of their errors, in nats of the likelihood bound.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ldmprobe.analysis.bands import bands_of
from ldmprobe.analysis.intervals import clustered_half_width, clustered_mean
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import log_snr_grid
from ldmprobe.probing.draws import Draws
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.probe import Progress, Ranks, evaluating, no_progress

PROBE = "precision"
Change = Callable[[nn.Module], nn.Module]
"""Takes a copy of a network, to be changed in place, and returns it, or another in its place."""

METRICS = (
    Metric(
        "precision_lost/*", "Lost by fewer bits, by noise level",
        "Held-out error of a copy of the network in this format less that of the network as it is, on the same draws, "
        "in nats of the likelihood bound: 0 where the format costs nothing.",
        "nats", good="lower", ideal=0.0, pool="sum", shown="headline",
    ),
    Metric(
        "precision_lost_in_all/*", "Lost by fewer bits", "The sum over all noise levels.", "nats", good="lower",
        ideal=0.0, shown="headline",
    ),
    Metric("precision_lost_in_all_half_width/*", "95 % half-width of it", "", "nats", shown="record"),
)  # fmt: skip


def _rounded(to_format: Callable[[Tensor], Tensor]) -> Change:
    """Return the change that rounds all weights of two and more dimensions, and computes with them as before."""

    def change(network: nn.Module) -> nn.Module:
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.copy_(to_format(weight.float()))
        return network

    return change


def _int8(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round() * scale


def _compiled(network: nn.Module) -> nn.Module:
    network.compile()
    return network


FORMATS: Mapping[str, Change] = {
    "bf16": lambda network: network.to(torch.bfloat16),
    "fp16": lambda network: network.to(torch.float16),
    "fp8": _rounded(lambda weight: weight.to(torch.float8_e4m3fn).float()),
    "int8": _rounded(_int8),
    "compiled": _compiled,
}
"""What copies can be made: bf16 and fp16 in weights and arithmetic; fp8 (e4m3) and int8 (one scale for each output) in
weights alone; and ``torch.compile``, which changes the order of sums."""


def probe_precision(
    model: DiffusionModel,
    held_out: HeldOut,
    formats: Mapping[str, Change] | None = None,
    num_draws: int = 128,
    batch_size: int = 128,
    seed: int = 0,
    step: int = 0,
    ranks: Ranks | None = None,
    progress: Progress = no_progress,
) -> ProbeRecord:
    """Denoise the same draws by the network and by copies of it in other formats; one copy is held at a time.

    Args:
        formats: by name, what is done to a copy; default: those of ``FORMATS`` called bf16 and int8.
        num_draws: noised latents per level, for the network and for each copy.

    Returns:
        A record called "precision", the same on every rank, whose provenance has the ``summary``: what each format
        loses, and in which band of log-SNR most.

    Raises:
        ConfigurationError: fewer than two held-out latents.
    """
    if len(held_out.latents) < 2:
        raise ConfigurationError(
            f"There is {len(held_out.latents)} held-out image; expected at least 2, better 32 or more, for intervals."
        )
    formats = {name: FORMATS[name] for name in ("bf16", "int8")} if formats is None else formats
    timesteps, num_images = log_snr_grid(model), min(len(held_out.latents), num_draws)
    draws = Draws.of(held_out, num_draws, seed, model.device, ranks)

    def errors_of(network: nn.Module, number: int) -> Tensor:
        errors = draws.squared_errors(replace(model, network=network), timesteps, batch_size)
        progress(number, len(formats) + 1)
        return errors

    with evaluating(model.modules):
        as_it_is = errors_of(model.network, 1)
        lost = {
            name: errors_of(change(copy.deepcopy(model.network)), number) - as_it_is
            for number, (name, change) in enumerate(formats.items(), 2)
        }
    log_snr = model.schedule.log_snr[timesteps]
    nats = torch.from_numpy(nats_per_error(log_snr.numpy(), held_out.latents[0].numel()))
    cluster = torch.arange(num_draws) % num_images

    def with_width(values: Tensor) -> tuple[Tensor, Tensor]:
        return values.mean(0), clustered_half_width(values, cluster)

    scalars: dict[str, float] = {}
    curves: dict[str, Curve] = {}
    said = []
    bands = bands_of(log_snr.numpy())
    for name, difference in lost.items():
        curves[f"precision_lost/{name}"] = Curve.around(timesteps, log_snr, *with_width(nats * difference))
        total, total_width = (float(each) for each in with_width(difference @ nats))
        scalars[f"precision_lost_in_all/{name}"] = total
        scalars[f"precision_lost_in_all_half_width/{name}"] = total_width
        of_bands = difference @ (nats * torch.from_numpy(np.stack([band.share for band in bands]))).T
        found = clustered_mean(of_bands.T.numpy(), cluster.numpy())
        sure = np.where(found.p_value * len(bands) < 0.05, found.value, 0.0)  # Bonferroni
        where = bands[int(sure.argmax())].name if sure.max() > 0 else None
        said.append(
            f"{name}: {total:+.2g} ± {total_width:.1g} nats lost, "
            f"{f'most in log-SNR {where}' if where else 'in no band for sure'}"
        )
    return ProbeRecord(
        PROBE,
        step,
        scalars=scalars,
        curves=curves,
        metrics=METRICS,
        provenance={
            "num_draws": num_draws,
            "num_images": num_images,
            "seed": seed,
            "weights": model.weights,
            "summary": "; ".join(said) + ".",
        },
        fingerprints={
            "grid": fingerprint(timesteps, log_snr.float()),
            "codec": fingerprint(model.codec.description),
            "held_out": fingerprint(num_draws, num_images, seed, held_out.first(num_images).outline),
        },
    )
