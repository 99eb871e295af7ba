"""Chains from real latents: a fault is inherited by those that start above it, and by no other."""

import pytest

from ldmprobe import Curve, DiffusionModel, HeldOut, InheritedError, Sampling, probe_sampling
from tests.helpers import gaussian_model, refused
from tests.probing.gaussian import draw, exact_reference, faulty


def gap(model: DiffusionModel) -> Curve:
    perfect = gaussian_model()
    held_out = HeldOut(draw(perfect, 512, seed=5), {})
    analyses = [InheritedError(num_levels=4)]
    return probe_sampling(
        model, exact_reference(perfect), Sampling(8, 40), analyses=analyses, held_out=held_out
    ).curves["gap_from_level"]


def test_a_fault_is_in_the_chains_that_start_above_it_and_in_no_other():
    healthy, spoilt = gap(gaussian_model()), gap(faulty(300, 600, 1.3))
    assert healthy.timestep.tolist() == [976, 726, 476, 226]
    assert (spoilt.lower[:3] > healthy.upper[:3]).all()
    assert spoilt.value[3] == pytest.approx(healthy.value[3], rel=1e-9)
    assert spoilt.value[2] < spoilt.value[1]  # half of the band is above t = 476


def test_without_real_latents_it_is_an_error():
    with refused("InheritedError needs real latents"):
        probe_sampling(gaussian_model(), None, Sampling(8, 2), analyses=[InheritedError()])
