r"""The forgetting probe: what each noise level loses on the base model's own kind of data, and gains on the new.

Both models denoise the same held-out latents with the same noise, so that what differs between draws cancels in the
differences of their squared ε-errors. In nats of the likelihood bound (the I-MMSE relation, as in
``probing/denoising.py``), per level λ,

.. math:: \text{change}(\lambda) = \tfrac12 D\,w(\lambda)
    \,(\text{MSE}_\text{base model}(\lambda) - \text{MSE}_\text{finetuned}(\lambda)),

w being the level's width in log-SNR (``analysis/likelihood.py``); it is below 0 where something was lost. Divided by
the best linear denoiser's error instead, it is the change of skill.

The base model need not be there any more: its record holds all that it is compared by::

    before = probe_forgetting(base_model, base_data, new_data)
    after = probe_forgetting(finetuned_model, base_data, new_data, before=before)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ldmprobe.analysis.comparison import BandGain, gains_by_band
from ldmprobe.analysis.intervals import clustered_mean
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, PerSample, ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.probe import Progress, Ranks, no_progress

DATA = ("base", "new")

METRICS = (
    Metric(
        "forgotten_nats", "Forgotten", "Lost on the base model's data over all levels, net.", "nats", good="lower",
        ideal=0.0, beside=("gained_nats",), spread="forgotten_nats_half_width", shown="headline",
    ),
    Metric(
        "gained_nats", "Gained", "Gained on the new data over all levels, net.", "nats", good="higher", ideal=0.0,
        spread="gained_nats_half_width", shown="headline",
    ),
    Metric("forgotten_nats_half_width", "95 % half-width of what was forgotten", "", "nats"),
    Metric("gained_nats_half_width", "95 % half-width of what was gained", "", "nats"),
    Metric(
        "forgetting_nats/*", "What finetuning forgot and gained",
        "Change since the base model on its own kind of data and on the new, paired draw by draw: below 0 is lost.",
        "nats per level", good="higher", ideal=0.0, pool="sum", shown="headline",
    ),
    Metric(
        "forgetting_skill_change/*", "Change of skill", "The same, divided by the best linear denoiser's error.",
        "change of skill", good="higher", ideal=0.0,
    ),
    Metric(
        "forgetting_skill/*", "Skill before and after finetuning",
        "Dashed: the base model on the same data. 0 is the best linear denoiser of that kind of data; where a dashed "
        "line and its solid one part, the level has changed, and the nats say how much that weighs.",
        "skill: 1 − MSE ÷ linear optimum", good="higher", ideal="forgetting_skill_before/*",
    ),
    Metric(
        "forgetting_residual/*", "Residual R before and after finetuning",
        "The share of a level's error that a linear correction would remove. Where it has risen, predictions have "
        "become miscalibrated, which a linear correction would mend; where only skill has fallen, none would.",
        "R: recoverable share of the loss", good="lower", ideal="forgetting_residual_before/*",
    ),
    Metric("forgetting_skill_before/*", "base model", "", "skill: 1 − MSE ÷ linear optimum", shown="record"),
    Metric("forgetting_residual_before/*", "base model", "", "R: recoverable share of the loss", shown="record"),
)  # fmt: skip


@dataclass(frozen=True)
class KindOfData:
    """One of the two kinds: latents that training has not seen, and the reference of those that it has."""

    held_out: HeldOut
    reference: LatentStatistics


def probe_forgetting(
    model: DiffusionModel,
    base_data: KindOfData,
    new_data: KindOfData,
    before: ProbeRecord | None = None,
    num_draws: int = 512,
    batch_size: int = 256,
    seed: int = 0,
    step: int = 0,
    ranks: Ranks | None = None,
    progress: Progress = no_progress,
) -> ProbeRecord:
    """Run the denoising probe on both kinds of data, and compare with what it found before finetuning.

    Curves are of both kinds, ``…/base`` and ``…/new``, with 95 % intervals over images, over folds of them for R. Per
    sample there are ``forgetting_errors/base`` and ``…/new`` (levels, draws). The provenance holds the ``summary``, one
    sentence.

    Args:
        base_data: of the kind that the base model was trained on, encoded by the codec of ``model``, with conditions of
            its conditioning.
        new_data: of the kind that it is finetuned on.
        before: the base model's record; without it this is that record, in which nothing has changed.
        num_draws: noised latents per level and kind of data.

    Returns:
        A record called "forgetting", the same on every rank.

    Raises:
        ConfigurationError: ``before`` was measured otherwise; or what ``probe_denoising`` raises.
    """
    found: dict[str, ProbeRecord] = {}
    for k, data in enumerate((base_data, new_data)):
        found[DATA[k]] = probe_denoising(
            model,
            data.held_out,
            data.reference,
            num_draws=num_draws,
            batch_size=batch_size,
            seed=seed,
            step=step,
            ranks=ranks,
            progress=partial(_part, progress, k),
        )
    fingerprints = {part: found["base"].fingerprints[part] for part in ("grid", "codec")}
    for kind, record in found.items():
        fingerprints |= {f"{part}/{kind}": record.fingerprints[part] for part in ("reference", "held_out")}
    _refuse_other(before, fingerprints)
    scalars: dict[str, float] = {}
    curves: dict[str, Curve] = {}
    errors: dict[str, PerSample] = {}
    bands: dict[str, list[BandGain]] = {}
    for (kind, record), total in zip(found.items(), ("forgotten_nats", "gained_nats"), strict=True):
        skill, residual = record.curves["denoising_skill"], record.curves["calibration_residual"]
        after = errors[f"forgetting_errors/{kind}"] = record.per_sample["denoising_errors"]
        past_skill, past_residual, past = skill, residual, after
        if before is not None:
            past_skill, past_residual = (before.curves[f"forgetting_{name}/{kind}"] for name in ("skill", "residual"))
            past = before.per_sample[f"forgetting_errors/{kind}"]
        # In one order in memory, so that a resumed run, which has it from disk, sums to the same last bits.
        first, last = (np.array(each.value, order="C") for each in (past, after))
        image = np.arange(num_draws) % record.provenance["num_images"]
        nats = nats_per_error(after.log_snr, record.provenance["dimension"])
        change = clustered_mean(first - last, image)
        (bands[kind],) = gains_by_band(after.log_snr, first, [last], image, nats)
        everywhere = bands[kind][-1]
        scalars[total] = -everywhere.gain if kind == "base" else everywhere.gain
        scalars[f"{total}_half_width"] = everywhere.half_width
        for name, scale in (("nats", nats), ("skill_change", 1 / record.curves["denoising_mmse"].value)):
            curves[f"forgetting_{name}/{kind}"] = Curve.around(
                skill.timestep, skill.log_snr, scale * change.value, scale * change.half_width
            )
        curves |= {
            f"forgetting_skill/{kind}": skill,
            f"forgetting_skill_before/{kind}": past_skill,
            f"forgetting_residual/{kind}": residual,
            f"forgetting_residual_before/{kind}": past_residual,
        }
    known = found["base"].provenance
    base, new = (record.provenance["num_images"] for record in found.values())
    return ProbeRecord(
        "forgetting",
        step,
        scalars=scalars,
        curves=curves,
        metrics=METRICS,
        per_sample=errors,
        provenance={
            "num_draws": num_draws,
            "num_images": {kind: record.provenance["num_images"] for kind, record in found.items()},
            "seed": seed,
            "weights": known["weights"],
            "dimension": known["dimension"],
            "summary": _sentence(bands["base"], bands["new"]),
            "notes": {
                "forgetting_nats/*": f"Both models denoise the same held-out draws, of {base} images of the base "
                f"model's data and {new} of the new."
            },
        },
        fingerprints=fingerprints,
    )


def _part(progress: Progress, k: int, done: int, total: int) -> None:
    progress(k * total + done, len(DATA) * total)


def _refuse_other(before: ProbeRecord | None, fingerprints: dict[str, str]) -> None:
    if before is None or before.fingerprints == fingerprints:
        return
    differing = [
        part
        for part in {**before.fingerprints, **fingerprints}
        if before.fingerprints.get(part) != fingerprints.get(part)
    ]
    raise ConfigurationError(
        "The base model was measured otherwise than this one, so that draws cannot be paired; what differs is "
        f"{', '.join(differing)}. Give both the same data in a fixed order, noise schedule, codec, num_draws and seed."
    )


def _sentence(base: Sequence[BandGain], new: Sequence[BandGain]) -> str:
    """Return in words what was lost on the base model's data and gained on the new, and where most of it. The last band
    is all levels.
    """
    if not np.isfinite([band.gain for band in (*base, *new)]).all():
        return "Predictions have NaN or Inf in them: nothing can be said of what was forgotten."
    parts = []
    for sign, gains, most, nothing, data in (
        (-1, base, "Forgets", "No band of noise levels has measurably forgotten anything of", "the base model's data"),
        (1, new, "Gains", "None has measurably gained on", "the new data"),
    ):
        *bands, everywhere = gains
        sure = [band for band in bands if band.significant and sign * band.gain > 0]
        said = f"{nothing} {data}"
        if sure:
            band = max(sure, key=lambda band: sign * band.gain)
            said = f"{most} most at log-SNR {band.name}: {_nats(band)} on {data}"
        word = "lost" if everywhere.gain < 0 else "gained"
        parts.append(f"{said} (all levels together: {_nats(everywhere)} {word}).")
    return " ".join(parts)


def _nats(band: BandGain) -> str:
    return f"{abs(band.gain):,.1f} ± {band.half_width:,.1f} nats"
