r"""The probe of a LoRA's strength: W = W_0 + s (α/r) B A for several s, on the base model's kind of data and the new.

At each strength both kinds' held-out latents are denoised, the same with the same noise, and compared draw by draw with
s = 0, the base model, in nats of the likelihood bound as in ``probing/forgetting.py``:

.. math:: \text{net}(s) = \text{gained}(s) - \text{forgotten}(s), \qquad s^* = \arg\max_s \text{net}(s)

At s* the next nat gained costs a nat forgotten; below it, less. The ratio gained ÷ forgotten is largest at small s
whatever the LoRA, and is therefore not what is maximized. Between the strengths that were tried net(s) is a cubic
spline; the interval of s* is a jackknife over groups of images. All of this is of the held-out bound: of samples s*
says little (docs/MODELS.md, "How strong a LoRA should be").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.interpolate import CubicSpline

from ldmprobe.analysis.bands import band_key, bands_of
from ldmprobe.analysis.intervals import clustered_mean, jackknife_interval, student
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.pretrained.lora import has_lora, lora_at
from ldmprobe.probing.denoising import log_snr_grid
from ldmprobe.probing.draws import Draws
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.probe import Progress, Ranks, evaluating, no_progress

PROBE, BEST = "lora_strength", "lora_strength_best"
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
_GROUPS = 16  # of images, for the jackknife
_AXIS, _PLACES = "strength of the LoRA", "lora_strength_tried"

METRICS = (
    Metric(
        BEST, "Best LoRA strength for the bound",
        "s*, where what is gained on the new data less what is forgotten of the base model's is largest: there the "
        "next nat gained costs a nat forgotten.",
        "strength; 1 is as trained", good="ideal", ideal=1.0, shown="headline",
    ),
    Metric("lora_strength_best/lower", "Lower end of its 95 % interval", "", ""),
    Metric("lora_strength_best/upper", "Upper end of its 95 % interval", "", ""),
    Metric(
        "lora_strength_net_gain", "Gained by the best strength", "Net, over strength 1.", "nats", good="higher",
        ideal=0.0, spread="lora_strength_net_gain_half_width", shown="headline",
    ),
    Metric("lora_strength_net_gain_half_width", "95 % half-width of it", "", "nats"),
    Metric("lora_strength_best_band/*", "Best strength within a band", "Of the band of log-SNR that begins there.", ""),
    Metric(
        "lora_strength_nats/*", "How strong the LoRA should be",
        "Nats gained on the new data, nats forgotten of the base model's own kind, and net, the one less the other, "
        "over strength: net is highest at s*.",
        "nats, compared with the base model", ideal=0.0, along=_AXIS, places=_PLACES, shown="headline",
    ),
    Metric(
        "lora_strength_net_band/*", "How strong it should be, by noise level",
        "Gained less forgotten within each band of log-SNR, named by its lower end: bands whose lines peak apart want "
        "different strengths.",
        "nats", good="higher", ideal=0.0, along=_AXIS, places=_PLACES,
    ),
    Metric("lora_strength_tried", "Strength", "", "", along="number", shown="record"),
)  # fmt: skip


def probe_lora_strength(
    model: DiffusionModel,
    base_data: HeldOut,
    new_data: HeldOut,
    strengths: Sequence[float] = STRENGTHS,
    num_draws: int = 512,
    batch_size: int = 256,
    seed: int = 0,
    step: int = 0,
    ranks: Ranks | None = None,
    progress: Progress = no_progress,
) -> ProbeRecord:
    """Denoise held-out latents of both kinds at each strength of the model's LoRA, and say which is best.

    Curves have 95 % intervals over images. The provenance holds the ``summary``.

    Args:
        model: a denoiser with a LoRA, not merged.
        base_data, new_data: held-out latents of the kind that the base model was trained on, and of the new.
        strengths: which are tried; 0 and 1 among them.
        num_draws: noised latents per level and kind of data.

    Returns:
        A record called "lora_strength", the same on every rank.

    Raises:
        ConfigurationError: there is no LoRA, there are fewer than four strengths or than two images of a kind, or 0 or
            1 is not among the strengths.
    """
    tried = sorted(set(strengths))
    if not has_lora(model.network):
        raise ConfigurationError("The model has no LoRA whose strength could be set; finetune it with `lora`.")
    if len(tried) < 4 or not {0.0, 1.0} <= set(tried) or tried[0] < 0:
        raise ConfigurationError(f"Strengths are {list(strengths)}; expected four or more from 0, 0 and 1 among them.")
    if min(len(data.latents) for data in (base_data, new_data)) < 2:
        raise ConfigurationError("The best strength has an interval over images; give at least 2 of each kind.")
    timesteps = log_snr_grid(model)
    log_snr = model.schedule.log_snr[timesteps].numpy()
    nats = nats_per_error(log_snr, base_data.latents[0].numel())
    bands = bands_of(log_snr)
    counted = np.stack([*(band.share for band in bands), np.ones(len(log_snr))]) * nats  # (bands + 1, levels)
    falls, images = [], []  # of each kind: (bands + 1, strengths, draws), and the image of each draw
    for k, data in enumerate((base_data, new_data)):
        with evaluating(model.modules):
            draws, errors = Draws.of(data, num_draws, seed, model.device, ranks), []
            for n, strength in enumerate(tried):
                with lora_at(model.network, strength):
                    errors.append(draws.squared_errors(model, timesteps, batch_size).T.numpy())
                progress(k * len(tried) + n + 1, 2 * len(tried))
        falls.append(np.stack([counted @ (errors[0] - each) for each in errors], 1))
        images.append(np.arange(num_draws) % len(data.latents))
    lost, won = (clustered_mean(fall, image) for fall, image in zip(falls, images, strict=True))
    net, width = won.value + lost.value, np.hypot(won.half_width, lost.half_width)
    groups = min(_GROUPS, *(int(image.max()) + 1 for image in images))
    factor = student(groups)
    without = np.stack([_without(falls, images, groups, group) for group in range(groups)])  # (groups, bands + 1, S)
    best = np.array([_peak(tried, curve) for curve in net])
    peaks = np.array([_peak(tried, curve) for curve in without[:, -1]])
    lower, upper = (float(end) for end in jackknife_interval(torch.tensor(best[-1]), torch.from_numpy(peaks), factor))
    lower, upper = max(lower, tried[0]), min(upper, tried[-1])
    gain, *gains = (_at(tried, curve, best[-1]) - curve[tried.index(1.0)] for curve in (net[-1], *without[:, -1]))
    low, high = jackknife_interval(torch.tensor(float(gain)), torch.tensor(gains, dtype=torch.float64), factor)
    half = float(high - low) / 2

    names = [band_key(band.low) for band in bands]
    return ProbeRecord(
        PROBE,
        step,
        scalars={
            BEST: float(best[-1]),
            f"{BEST}/lower": lower,
            f"{BEST}/upper": upper,
            "lora_strength_net_gain": float(gain),
            "lora_strength_net_gain_half_width": half,
            **{f"lora_strength_best_band/{name}": float(best[k]) for k, name in enumerate(names)},
        },
        curves={
            "lora_strength_tried": Curve.along(tried),
            "lora_strength_nats/net": Curve.along(net[-1], width[-1]),
            "lora_strength_nats/gained": Curve.along(won.value[-1], won.half_width[-1]),
            "lora_strength_nats/forgotten": Curve.along(-lost.value[-1], lost.half_width[-1]),
            **{f"lora_strength_net_band/{name}": Curve.along(net[k], width[k]) for k, name in enumerate(names)},
        },
        metrics=METRICS,
        provenance={
            "strengths": tried,
            "num_draws": num_draws,
            "num_images": {"base": len(base_data.latents), "new": len(new_data.latents)},
            "seed": seed,
            "weights": model.weights,
            "summary": _sentence(tried, float(best[-1]), lower, upper, float(gain), half),
        },
        fingerprints={
            "grid": fingerprint(timesteps, torch.from_numpy(log_snr).float()),
            "codec": fingerprint(model.codec.description),
            "held_out": fingerprint(num_draws, seed, tried, base_data.outline, new_data.outline),
        },
    )


def _without(falls: Sequence[np.ndarray], images: Sequence[np.ndarray], groups: int, group: int) -> np.ndarray:
    """Return net, (bands + 1, strengths), without one of the groups of images of each kind."""
    return sum(
        (fall[..., image % groups != group].mean(-1) for fall, image in zip(falls, images, strict=True)),
        np.zeros(falls[0].shape[:2]),
    )


def _peak(tried: Sequence[float], net: np.ndarray) -> float:
    """Return where the spline through ``net`` (S,) is highest; NaN where it is not finite."""
    if not np.isfinite(net).all():
        return float("nan")
    fine = np.linspace(tried[0], tried[-1], 1001)
    return float(fine[np.argmax(CubicSpline(tried, net)(fine))])


def _at(tried: Sequence[float], net: np.ndarray, strength: float) -> float:
    return float(CubicSpline(tried, net)(strength)) if np.isfinite(net).all() else float("nan")


def _sentence(tried: Sequence[float], best: float, lower: float, upper: float, gain: float, half: float) -> str:
    if not np.isfinite(best):
        return "Predictions have NaN or Inf in them: nothing can be said of the LoRA's strength."
    if best <= tried[0]:
        return "At no strength does this LoRA gain on the new data what it forgets of the base model's."
    end = " It is the strongest that was tried; try stronger ones." if best >= tried[-1] else ""
    sure = "surely better than" if gain > half else "not to be told from"
    return (
        f"By the held-out bound the LoRA is best at strength {best:.2f} (95 %: {lower:.2f} to {upper:.2f}), where it "
        f"gains most on the new data less what it forgets of the base model's: {gain:,.2f} ± {half:,.2f} nats more "
        f"than at 1, {sure} it.{end} Samples may say otherwise: draw some at both."
    )
