"""The denoising probe's record: its metrics, and the errors of its draws, which runs are compared by in pairs."""

from __future__ import annotations

import numpy as np

from ldmprobe.analysis.bands import LogSNRBand, band_key, bands_of
from ldmprobe.analysis.faults import Levels
from ldmprobe.analysis.imbalance import Band, summarize
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.data.identity import MOST_KNOWN
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.probing.class_information import METRICS as CLASS_INFORMATION
from ldmprobe.probing.condition_use import METRICS as CONDITION_USE
from ldmprobe.probing.ideals import METRICS as IDEALS
from ldmprobe.probing.outliers import METRICS as OUTLIER_METRICS
from ldmprobe.probing.outliers import OUTLIERS
from ldmprobe.probing.repeatability import CURVE as CHANCE
from ldmprobe.probing.repeatability import METRICS as REPEATABILITY

PROBE, ERRORS, EXCESS, SQUARE = "denoising", "denoising_errors", "excess_over/", "prediction_square"
KNOWN = "held_out_in_reference"  # the share of held-out latents that training sees, too
LOG_SNR_SPACING = 0.75  # of the levels that are probed
METRICS = (
    Metric(
        "denoising_bound_nats", "Held-out bound",
        "The likelihood bound between the first level and the last; lower is better.", "nats", good="lower",
        shown="headline",
    ),
    Metric(
        "denoising_lowest_skill", "Lowest skill",
        "The skill of the worst level; below 0 it is worse than a linear denoiser.", "", good="higher", ideal=0.0,
        shown="headline",
    ),
    Metric(
        "imbalance_gini", "Imbalance",
        "Gini coefficient of what is recoverable over bands of log-SNR: 0 where every band has as much left, towards "
        "1 where all is in one.",
        "", good="lower", shown="headline",
    ),
    Metric(
        "imbalance_share/*", "Share of what is recoverable",
        "How the recoverable excess is spread over bands of log-SNR, named by their lower end.", "",
    ),
    Metric(
        "calibration_residual_band/*", "Residual R within a band", "Of the band of log-SNR that begins there.", "",
        good="lower", ideal=0.0, shown="headline",
    ),
    Metric(
        "calibration_residual", "Where loss can still be recovered",
        "The calibration residual R: the share of a noise level's held-out error that a linear correction, fitted on "
        "other images, would remove. 0 is calibrated; what is above is error that training has yet to remove, at "
        "least.",
        "R: recoverable share of the loss", good="lower", ideal=0.0, shown="headline",
    ),
    Metric(
        "denoising_nats", "Gain over a linear denoiser, in nats",
        "What each level weighs in the likelihood bound, per level: gained over the best linear denoiser, and still "
        "recoverable (dotted). A large R or a low skill matters only where this does.",
        "nats per level", good="higher", ideal=0.0, beside=("calibration_nats",), pool="sum", shown="headline",
    ),
    Metric(
        "denoising_skill", "Denoising skill on held-out data",
        "1 − MSE ÷ that of the best linear (Wiener) denoiser, without sampling: held-out latents are noised and "
        "denoised once. Below 0 is worse than linear, a red flag wherever the level still weighs something in nats; "
        "below the dotted line, worse than the best that can be had without a network.",
        "skill: 1 − MSE ÷ linear optimum", good="higher", ideal=0.0, beside=("ideal_skill",), pool="mean",
        shown="headline",
    ),
    Metric(
        "denoising_mse", "Training and held-out error by noise level",
        "Raw, unweighted, whatever the loss weighting and timestep sampler. Training far below held-out is "
        "overfitting at that level.",
        "squared ε-error per dimension", good="lower", ideal="denoising_mmse", beside=("training_mse",), log=True,
    ),
    Metric(
        "denoising_mmse", "Linear optimum",
        "The best linear denoiser's error, from the spectrum behind the reference.", "squared ε-error per dimension",
        log=True, shown="record",
    ),
    Metric(
        "calibration_nats", "Still recoverable, at least", "The residual in nats: what training can still gain there.",
        "nats per level", good="lower", ideal=0.0,
    ),
    Metric(
        "denoising_progress", "Progress since the last probe", "What was gained, paired draw by draw.",
        "nats per level", good="higher", ideal=0.0,
    ),
    Metric(
        "prediction_gain", "Are predictions of the right size?",
        "What they would have to be multiplied by to fit held-out noise best. Above 1 they are too small, below 1 "
        "too large; a few per cent in a band show here long before they show in a loss.",
        "gain: E[ε·ε̂] ÷ E[ε̂²]", ideal=1.0,
    ),
    Metric(SQUARE, "Mean square of predictions", "", "E[ε̂²] per dimension", shown="record"),
    Metric(
        "prediction_offset", "Are predictions shifted?",
        "The mean of the error by channel, root mean square. A finite number of images leaves something of it by "
        "chance (dashed): what lies well above is a shift of color or brightness.",
        "mean error, in units of the noise", good="lower", ideal="prediction_offset_floor", log=True,
    ),
    Metric(
        "prediction_offset_floor", "of a calibrated denoiser, by chance", "", "mean error, in units of the noise",
        log=True, shown="record",
    ),
    Metric(
        "image_mse", "Error of the decoded prediction",
        "Mean squared error of the decoded x̂_0, in pixels of [−1, 1].", "squared error per pixel", good="lower",
        log=True,
    ),
    *IDEALS,
    *CONDITION_USE,
    *CLASS_INFORMATION,
    *REPEATABILITY,
    *OUTLIER_METRICS,
)  # fmt: skip


def is_whole(record: ProbeRecord) -> bool:
    """Return whether a record has the errors of its draws, and what it takes to weigh and pair them."""
    errors, known = record.per_sample.get(ERRORS), record.provenance
    expected = (len(record.curves["denoising_mse"].value), known.get("num_draws")) if record.curves else None
    return errors is not None and errors.value.shape == expected and {"num_images", "dimension"} <= known.keys()


def can_be_judged(record: ProbeRecord) -> bool:
    """Return whether a record is whole and has all that a verdict asks of its levels."""
    return is_whole(record) and {CHANCE, *(kind.name for kind in OUTLIERS)} <= record.curves.keys()


def seen_in_training(record: ProbeRecord) -> str:
    """Return what a record says of held-out images that are training images, in a sentence; "" where there are hardly
    any, or it does not tell.
    """
    known = float(record.provenance.get(KNOWN, 0.0))
    return f"Of the images that are called held out, {known:.0%} are training images." if known > MOST_KNOWN else ""


def is_untrained(record: ProbeRecord) -> bool:
    """Return whether a record is of a network that training has yet to begin with: before the first step, somewhere
    worse than a linear denoiser and nowhere surely better. The base of a finetune is better.
    """
    skill = record.curves.get("denoising_skill")
    if skill is None or record.step > 0:
        return False
    width = half_width_of(skill)
    return not (skill.value - width > 0).any() and not (skill.value + width >= 0).all()


def log_snr_of(record: ProbeRecord) -> np.ndarray:
    """Return the levels, (L,)."""
    return record.per_sample[ERRORS].log_snr


def errors_of(record: ProbeRecord) -> np.ndarray:
    """Return the squared ε-error of each level and draw, (L, N); NaN where a network has diverged."""
    value = record.per_sample[ERRORS].value
    return np.where(np.isfinite(value), value, np.nan)


def nats_of(record: ProbeRecord) -> np.ndarray:
    """Return the nats of the likelihood bound per unit of error at each level, (L,)."""
    return nats_per_error(log_snr_of(record), float(record.provenance["dimension"]))


def bound_per_draw(record: ProbeRecord) -> np.ndarray:
    """Return the likelihood bound of each draw, (N,); its mean is the record's ``denoising_bound_nats``."""
    bounds: np.ndarray = nats_of(record) @ errors_of(record)
    return bounds


def image_of_draw(record: ProbeRecord) -> np.ndarray:
    """Return the number of each draw's image, (N,): draws of one image are not independent."""
    return np.arange(int(record.provenance["num_draws"])) % int(record.provenance["num_images"])


def recoverable_shares(record: ProbeRecord) -> list[tuple[LogSNRBand, float]]:
    """Return how the recoverable excess is spread over bands of log-SNR; empty for a record of another probe."""
    if "denoising_mse" not in record.curves:
        return []
    bands = bands_of(record.curves["denoising_mse"].log_snr)
    return [(band, record.scalars[f"imbalance_share/{band_key(band.low)}"]) for band in bands]


def levels_of(record: ProbeRecord) -> Levels:
    """Return what is known of each level, from noisy to clean."""
    curves, known = record.curves, record.provenance
    mse, skill, gain, offset = (
        curves[name] for name in ("denoising_mse", "denoising_skill", "prediction_gain", "prediction_offset")
    )
    if SQUARE in curves:
        square = curves[SQUARE].value
    else:  # E[(ε − ε_θ)²] = 1 − 2 g E[ε_θ²] + E[ε_θ²], g being the gain: next to g = ½ it tells nothing
        with np.errstate(invalid="ignore", divide="ignore"):
            square = np.abs(np.nan_to_num((1 - mse.value) / (2 * gain.value - 1), posinf=0.0, neginf=0.0))
    return Levels(
        mse.log_snr,
        mse.value,
        nats_per_error(mse.log_snr, float(known["dimension"])),
        curves["denoising_mmse"].value,
        skill.value,
        half_width_of(skill),
        gain.value,
        half_width_of(gain),
        square,
        offset.value,
        half_width_of(offset),
        min(int(known["num_images"]), int(known["num_draws"])),
        {
            name.removeprefix(EXCESS): (curve.value, half_width_of(curve))
            for name, curve in curves.items()
            if name.startswith(EXCESS)
        },
        curves[CHANCE].value,
    )


def residual_bands(record: ProbeRecord) -> list[Band]:
    """Return what the calibration residual says of each band of log-SNR."""
    residual, levels = record.curves["calibration_residual"], levels_of(record)
    width, draws = half_width_of(residual), int(record.provenance["num_draws"])
    return summarize(levels.log_snr, residual.value, width, levels.mse, levels.nats, draws).bands


def half_width_of(curve: Curve) -> np.ndarray:
    """Return the half-width of a curve's interval, (L,); NaN where none is known."""
    width: np.ndarray = np.full(len(curve.value), np.nan) if curve.upper is None else curve.upper - curve.value
    return width
