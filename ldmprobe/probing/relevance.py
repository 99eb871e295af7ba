r"""The probe of relevance: at which noise levels it matters to the samples which of two models answers.

Samples are drawn by a model, by another of the same noise levels, such as an earlier checkpoint of its run, and by the
model with the other's answers within one band of log-SNR, for each band in turn; all from the same starting noises, so
that most of what samples scatter by cancels. How far the Fréchet distance from real images rises is an intervention.
Beside it stands what the other loses there of the held-out bound, and the quotient, what a nat is worth to samples:

.. math:: r_b = \frac{\text{FID}(\text{other within } b) - \text{FID}(\text{model})}
                     {\text{nats}_b(\text{other}) - \text{nats}_b(\text{model})}

Bands need not add up to the whole, since one level's errors are the next one's input: the sum is told beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from ldmprobe.analysis.bands import LogSNRBand, band_key, bands_of
from ldmprobe.analysis.comparison import BandGain, gains_by_band
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint, weights_fingerprint
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.guidance import Guidance
from ldmprobe.models.guidance.base import Answer, Asked, Guided
from ldmprobe.probing.denoising import log_snr_grid
from ldmprobe.probing.draws import held_out_errors
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.paired_distance import distances, refuse_too_few_samples, rise
from ldmprobe.probing.probe import Progress, no_progress
from ldmprobe.probing.quality import sampled_features
from ldmprobe.probing.real_features import RealFeatures, checked_fingerprint, describe_network
from ldmprobe.probing.sampling import Sampling
from ldmprobe.types import PlainValues

PROBE = "relevance"
_AXIS, _PLACES = "log-SNR, middle of the band", "relevance_band"

METRICS = (
    Metric(
        "relevance_fid", "Which levels matter to samples",
        "By how much the FID is above the model's own where the other model answers within this band of log-SNR.",
        "FID, above the model's own", ideal=0.0, along=_AXIS, places=_PLACES, shown="headline",
    ),
    Metric(
        "relevance_nats", "What the other model loses there",
        "By how much the other's held-out bound is above the model's own within the band.",
        "nats, above the model's own", ideal=0.0, along=_AXIS, places=_PLACES, shown="headline",
    ),
    Metric("relevance_band", "Middle of the band", "", "log-SNR", along="number", shown="record"),
    Metric(
        "relevance_per_nat/*", "What a nat is worth to samples",
        "FID that comes with a nat lost in the band of log-SNR that begins there; left out where no loss is sure.",
        "FID per nat",
    ),
    Metric(
        "relevance_whole", "FID of the other model", "Above the model's own.", "FID", ideal=0.0,
        spread="relevance_whole_half_width", shown="headline",
    ),
    Metric("relevance_whole_half_width", "95 % half-width of it", "", "FID"),
)  # fmt: skip


class AnswersOf(Guidance):
    """Another model's answers at noise levels from ``low`` up to ``high``, and a model's own elsewhere, guided as
    ``guidance`` has it at that level.
    """

    def __init__(self, other: DiffusionModel, guidance: Guidance, low: float, high: float) -> None:
        self.other, self.guidance, self.band = other, guidance, (low, high)
        self._made: dict[int, AnswersOf] = {}  # one for each guidance that there is within the band

    def at(self, log_snr: float) -> Guidance:
        own, (low, high) = self.guidance.at(log_snr), self.band
        if not low <= log_snr < high:
            return own
        return self._made.setdefault(id(own), AnswersOf(self.other, own, low, high))

    def guide(self, answer: Answer, model: Guided) -> Answer:
        def theirs(z_t: Tensor, asked: Asked, condition: Condition) -> Tensor:
            return self.other.predict(z_t, asked.timesteps, condition)

        return self.guidance.guide(theirs, self.other)

    @property
    def provenance(self) -> PlainValues:
        return {**self.guidance.provenance, "answers_of_another_model": list(self.band)}

    @property
    def shifts(self) -> bool:
        return self.guidance.shifts

    def check(self, model: Guided) -> None:
        self.guidance.check(model)


def probe_relevance(
    model: DiffusionModel,
    other: DiffusionModel,
    held_out: HeldOut,
    real: RealFeatures,
    feature_network: nn.Module,
    sampling: Sampling | None = None,
    num_draws: int = 512,
    batch_size: int = 256,
    seed: int = 0,
    step: int = 0,
    progress: Progress = no_progress,
) -> ProbeRecord:
    """Sample with another model's answers within each band of noise levels, and compare.

    Curves have 95 % intervals, of FID by a jackknife over samples, of nats over images. The provenance holds the
    ``summary``.

    Args:
        model: what to probe.
        other: of the same latents, noise schedule and prediction, such as an earlier checkpoint of the same run.
        held_out: of which the bounds are.
        real: features of real images, by the same network.
        feature_network: images (N, C, H, W) in [−1, 1] → features (N, F); moved to the model's device.
        sampling: how to sample, once by each model and once a band; default: 1,024 samples in 20 steps.
        num_draws: noised latents per level, for the bounds.

    Returns:
        A record called "relevance".

    Raises:
        ConfigurationError: the models do not go together, the features are of another network, or fewer samples than
            groups can be made of.
    """
    sampling = sampling or Sampling(1024, 20)
    check_alike(model, other)
    checked_fingerprint(feature_network, real)
    refuse_too_few_samples(sampling.num_samples)
    grid = sampling.levels(model)
    probed = _probed_bands(model, grid.log_snr.double().numpy())
    bands = [band for band, *_ in probed]
    lost = _nats_lost(model, other, held_out, num_draws, batch_size, seed)
    asked = [AnswersOf(other, sampling.guidance, low, high) for _, low, high in probed]
    chosen = [sampling.guidance, *asked, AnswersOf(other, sampling.guidance, -np.inf, np.inf)]
    found = []
    for k, guidance in enumerate(chosen):
        drawn = sampled_features(model, feature_network, replace(sampling, guidance=guidance), grid)
        found.append(distances(real.features, drawn))
        progress(k + 1, len(chosen))
    own, *within, whole = found
    rises = [rise(each, own) for each in within]
    all_of_it = rise(whole, own)
    nats = [lost[band_key(band.low)] for band in bands]
    width = np.array([band.half_width for band in nats])
    return ProbeRecord(
        PROBE,
        step,
        scalars={
            "relevance_whole": all_of_it[0],
            "relevance_whole_half_width": all_of_it[1],
            **{
                f"relevance_per_nat/{band_key(band.low)}": rise[0] / gain.gain
                for band, rise, gain in zip(bands, rises, nats, strict=True)
                if gain.significant
            },
        },
        curves={
            "relevance_band": Curve.along([(band.low + band.high) / 2 for band in bands]),
            "relevance_fid": Curve.along(*(np.array(each) for each in zip(*rises, strict=True))),
            "relevance_nats": Curve.along(np.array([band.gain for band in nats]), width),
        },
        metrics=METRICS,
        provenance={
            **sampling.provenance(model),
            "other": other.weights,
            "other_step": other.trained_steps,
            "num_draws": num_draws,
            "real": real.source,
            "feature_network": describe_network(feature_network),
            "summary": _sentence(bands, rises, nats, all_of_it),
        },
        fingerprints={
            **sampling.fingerprints(model, grid),
            "features": real.network,
            "real_images": real.images,
            "held_out": fingerprint(num_draws, len(held_out.latents), seed, held_out.outline),
        },
    )


def check_alike(model: DiffusionModel, other: DiffusionModel) -> None:
    """Raise ConfigurationError where one model cannot answer for the other."""
    alike: tuple[tuple[str, Callable[[DiffusionModel], object]], ...] = (
        ("latents", lambda each: tuple(each.latent_shape)),
        ("prediction", lambda each: each.schedule.prediction.name),
        ("noise levels", lambda each: fingerprint(each.schedule.log_snr)),
        ("autoencoder", lambda each: fingerprint(each.codec.description)),
        ("text encoders", lambda each: weights_fingerprint(each.conditioning.parameters())),
    )
    if differing := [name for name, of in alike if of(model) != of(other)]:
        raise ConfigurationError(
            f"The two models differ in {' and '.join(differing)}, so that one cannot answer for the other; give an "
            "earlier checkpoint of the same run, or of one with the same settings."
        )


def _probed_bands(model: DiffusionModel, sampled: np.ndarray) -> list[tuple[LogSNRBand, float, float]]:
    """Return the bands of the levels that bounds are of, each with the log-SNR from which and up to which it answers
    for levels of samples: up to the next band, and the first and the last without end, so that a level without signal
    is in the noisiest. Bands that no level of ``sampled`` is in are left out.
    """
    bands = bands_of(model.schedule.log_snr[log_snr_grid(model)].numpy())
    edges = [-np.inf, *(band.low for band in bands[1:]), np.inf]
    found = zip(bands, edges, edges[1:], strict=False)
    return [(band, low, high) for band, low, high in found if ((low <= sampled) & (sampled < high)).any()]


def _nats_lost(
    model: DiffusionModel, other: DiffusionModel, held_out: HeldOut, num_draws: int, batch_size: int, seed: int
) -> dict[str, BandGain]:
    """Return what the model gains over the other of the held-out bound, by the name of the band."""
    timesteps = log_snr_grid(model)
    log_snr = model.schedule.log_snr[timesteps].numpy()
    errors = [held_out_errors(each, held_out, num_draws, seed, timesteps, batch_size) for each in (other, model)]
    image = np.arange(num_draws) % len(held_out.latents)
    nats = nats_per_error(log_snr, held_out.latents[0].numel())
    (gains,) = gains_by_band(log_snr, errors[0], errors[1:], image, nats)
    return {band_key(gain.low): gain for gain in gains[:-1]}


def _sentence(
    bands: list[LogSNRBand], rises: list[tuple[float, float]], nats: list[BandGain], whole: tuple[float, float]
) -> str:
    """Return in words where the other model's answers cost samples most."""
    above = "above" if whole[0] >= 0 else "below"
    told = f"The other model's FID is {abs(whole[0]):.3g} ± {whole[1]:.2g} {above} the model's own."
    sure = [k for k, (rise, width) in enumerate(rises) if rise > width]
    if not sure:
        return f"{told} Within no band of noise levels do its answers surely cost the samples anything."
    order = sorted(sure, key=lambda k: -rises[k][0])
    parts = [
        f"{rises[k][0]:.3g} ± {rises[k][1]:.2g} at log-SNR {bands[k].name} for {nats[k].gain:.3g} nats" for k in order
    ]
    in_all = sum(rise for rise, _ in rises)
    return f"{told} Within one band its answers cost {'; '.join(parts)}. All bands add up to {in_all:.3g}."
