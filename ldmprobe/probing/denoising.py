r"""The denoising probe: how well each noise level denoises held-out data, on a grid of log-SNR that no training choice moves.

.. math:: \text{skill}(\lambda) = 1 - \frac{\text{MSE}_\epsilon(\lambda)}{\text{MMSE}_\text{Gauss}(\lambda)}

Skill is 0 for the best *linear* denoiser and below 0 for anything worse. In nats: ½ D Δλ (MMSE_Gauss − MSE) per level (the I-MMSE relation;
Kong et al., 2023, arXiv:2302.03792), which weighs the levels by what they contribute to the likelihood bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmprobe.analysis.reference import gaussian_mmse
from ldmprobe.diffusion.prediction import to_x0_and_epsilon
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import Conditioning
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.probe import Progress, Ranks, evaluating, no_progress, sample_noise
from ldmprobe.probing.record import Curve, ProbeRecord, fingerprint
from ldmprobe.probing.reference import Reference, encode_images

LOG_SNR_SPACING = 0.75


@dataclass(frozen=True)
class HeldOut:
    """Held-out latents (N, C, H, W) with the condition of each, on the CPU; the same on every rank."""

    latents: Tensor
    condition: Condition

    @classmethod
    def encode(cls, codec: LatentCodec, conditioning: Conditioning, batches: Iterable[dict[str, Any]]) -> HeldOut:
        """From batches of held-out images."""
        latents, conditions = [], []
        for batch in batches:
            latents.append(encode_images(codec, [batch["image"]]))
            conditions.append(conditioning.from_batch(batch))
        if not latents:
            raise ConfigurationError("There are no held-out images to probe with.")
        merged = {name: torch.cat([condition[name].cpu() for condition in conditions]) for name in conditions[0]}
        return cls(torch.cat(latents), merged)


def log_snr_grid(model: DiffusionModel) -> Tensor:
    """The timesteps probed, noisiest first: those nearest to multiples of 0.75 in log-SNR, within the schedule's range."""
    log_snr = model.schedule.log_snr
    finite = log_snr[log_snr.isfinite()]
    first = int(np.ceil(float(finite.min()) / LOG_SNR_SPACING))
    last = int(np.floor(float(finite.max()) / LOG_SNR_SPACING))
    return model.schedule.timesteps_at(LOG_SNR_SPACING * torch.arange(first, last + 1))


def probe_denoising(
    model: DiffusionModel,
    held_out: HeldOut,
    reference: Reference,
    batch_size: int = 256,
    seed: int = 0,
    step: int = 0,
    ranks: Ranks | None = None,
    progress: Progress = no_progress,
) -> ProbeRecord:
    """Denoise held-out latents at each level, with noise fixed per sample.

    Curves over the grid (95 % intervals over samples):

    ==================  ===========================================================
    denoising_mse       mean squared ε-error per dimension, raw
    denoising_mmse      the best linear denoiser's, in closed form
    denoising_skill     1 − mse/mmse
    denoising_nats      what the network gains over the linear one, nats per level
    ==================  ===========================================================

    Scalar ``denoising_bound_nats``: ½ D Σ MSE Δλ, the part of the likelihood bound that the grid covers (lower is better).

    Returns:
        A record called "denoising", the same on every rank.
    """
    timesteps = log_snr_grid(model)
    ranks = ranks or Ranks()
    mine = ranks.share(len(held_out.latents))
    device, schedule = model.device, model.schedule
    with evaluating(model.modules):
        z0 = held_out.latents[mine].to(device)
        condition = {name: value[mine].to(device) for name, value in held_out.condition.items()}
        noise = sample_noise(mine.tolist(), tuple(z0.shape[1:]), seed, stream=1).to(device)
        errors = []
        for k, timestep in enumerate(timesteps.tolist()):
            alpha, sigma = float(schedule.alpha[timestep]), float(schedule.sigma[timestep])
            level = []
            for start in range(0, len(z0), batch_size):
                chunk = slice(start, start + batch_size)
                z_t = alpha * z0[chunk] + sigma * noise[chunk]
                part = {name: value[chunk] for name, value in condition.items()}
                prediction = model.predict(z_t, torch.full((len(z_t),), timestep, device=device), part)
                _, epsilon = to_x0_and_epsilon(schedule.prediction_type, prediction, z_t, alpha, sigma)
                level.append((epsilon - noise[chunk]).double().pow(2).flatten(1).mean(1))
            errors.append(torch.cat(level) if level else torch.empty(0, dtype=torch.float64, device=device))
            progress(k + 1, len(timesteps))
        squared = ranks.gather_rows(torch.stack(errors, 1), mine, len(held_out.latents))
    n, dimension = len(squared), held_out.latents[0].numel()
    log_snr = schedule.log_snr[timesteps]
    mse = squared.mean(0)
    half_width = 1.96 * squared.std(0) / n**0.5
    mmse = gaussian_mmse(reference.basis.variance, log_snr)
    nats = 0.5 * dimension * LOG_SNR_SPACING

    def curve(value: Tensor, width: Tensor | None = None) -> Curve:
        limits = (None, None) if width is None else ((value - width).numpy(), (value + width).numpy())
        return Curve(timesteps.numpy(), log_snr.numpy(), value.numpy(), *limits)

    return ProbeRecord(
        "denoising",
        step,
        scalars={"denoising_bound_nats": float(nats * mse.sum())},
        curves={
            "denoising_mse": curve(mse, half_width),
            "denoising_mmse": curve(mmse),
            "denoising_skill": curve(1 - mse / mmse, half_width / mmse),
            "denoising_nats": curve(nats * (mmse - mse), nats * half_width),
        },
        provenance={"num_samples": n, "seed": seed, "weights": model.weights, "dimension": dimension},
        fingerprints={
            "grid": fingerprint(timesteps, log_snr.float()),
            "reference": reference.fingerprint,
            "held_out": fingerprint(n, [f"{x:.3e}" for x in held_out.latents.flatten(1).mean(1).tolist()[:64]]),
        },
    )
