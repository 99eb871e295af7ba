"""Exposure and the scale that it suggests, on builtin:gaussian, where every norm is known in closed form."""

import numpy as np
import pytest
import torch

from ldmprobe.analysis.basis import Rotation
from ldmprobe.data.builtin import gaussian, gaussian_spectrum
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.grids import ScheduleGrid
from ldmprobe.diffusion.samplers import AnnealedLangevin, Heun, Sampler, ScaledEpsilon
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.ideal_denoisers import MixtureDenoiser
from ldmprobe.probing.analyses import Exposure, OneStepError
from ldmprobe.probing.analyses.exposure import _LogRatio
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from tests.helpers import refused, sd_scheduler
from tests.probing.gaussian import ScaledBand

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return gaussian(1536, channels=1).with_format("torch")["image"][:]


@pytest.fixture(scope="module")
def reference(latents: torch.Tensor) -> LatentStatistics:
    return LatentStatistics.fit(latents[:1024])


def model(factor: float = 1.0) -> DiffusionModel:
    """The exact denoiser of builtin:gaussian, its ε so many times too large."""
    schedule = as_schedule(sd_scheduler())
    variance = torch.from_numpy(gaussian_spectrum(8)).flatten()[None]
    exact = MixtureDenoiser(torch.ones(1), torch.zeros(1, 64), variance, Rotation.cosine(SHAPE), schedule)
    return DiffusionModel(ScaledBand(exact, 0, 1000, factor), schedule, SHAPE)


def probed(
    latents: torch.Tensor, reference: LatentStatistics, factor: float = 1.0, sampler: Sampler | None = None
) -> ProbeRecord:
    sampling = Sampling.of(512, 20, sampler, ScheduleGrid("trailing"), 1.0, 512, 0)
    held_out = HeldOut(latents[1024:], {})
    return probe_sampling(model(factor), reference, sampling, [Exposure(512), OneStepError(512)], held_out)


@pytest.fixture(scope="module")
def perfect(latents: torch.Tensor, reference: LatentStatistics) -> ProbeRecord:
    return probed(latents, reference)


def test_a_perfect_denoiser_has_the_ideal_exposure_and_nothing_to_scale(perfect, latents, reference):
    """So it has of a sampler that asks several times a step: the chain's ε̂ is that of a step's last question, whose ideal
    is asked about what the others have left."""
    for record in (perfect, probed(latents, reference, sampler=AnnealedLangevin(0.1, 3))):
        found, ideal = record.curves["exposure"], record.curves["exposure_ideal"].value
        assert (np.abs(found.value - ideal) < (found.upper - found.lower)).all()  # within two half-widths at every step
        assert abs(record.scalars["epsilon_scale"] - 1) < record.scalars["epsilon_scale_half_width"] < 0.015


def test_intervals_over_few_latents_hold_what_they_say():
    """The mean square of ε̂ by sample and by real latent, a hundredth of which is chance."""
    draw = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        chain, real = (1 + 0.01 * draw.standard_normal((number, 2)) for number in (64, 3))
        ratio = _LogRatio.of(chain, real, np.ones(2, bool))
        covered += (np.abs(ratio.value) < ratio.half_width(np.eye(2))).tolist()
    assert np.mean(covered) > 0.93  # .79 by the normal distribution


def test_an_epsilon_3_percent_too_large_is_to_be_scaled_by_its_inverse_and_that_mends_the_chain(
    latents, reference, perfect
):
    record = probed(latents, reference, 1.03)
    scale, width = (record.scalars[name] for name in ("epsilon_scale", "epsilon_scale_half_width"))
    assert abs(scale - 1 / 1.03) < width < 0.015
    mended = probed(latents, reference, 1.03, ScaledEpsilon(1 / 1.03))
    for name in ("exposure", "exposure_ideal"):
        np.testing.assert_allclose(mended.curves[name].value, perfect.curves[name].value, rtol=1e-4)
    assert mended.scalars["epsilon_scale"] == pytest.approx(perfect.scalars["epsilon_scale"], rel=1e-4)
    assert np.abs(record.curves["exposure"].value / mended.curves["exposure"].value - 1).max() > 0.05


def test_steps_that_end_at_another_level_are_left_open(latents, reference):
    record = probed(latents, reference, sampler=Heun())
    assert np.isnan(record.curves["exposure"].value[:-1]).all()  # the last is Euler's
    with refused("Exposure needs held-out latents"):
        probe_sampling(model(), reference, Sampling(8, 2), [Exposure()])
