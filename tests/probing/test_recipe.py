"""When a run's records recommend a learning rate that falls."""

import numpy as np
import pytest

from ldmprobe import Curve, ProbeRecord
from ldmprobe.probing.recipe import recipe_advice

LOG_SNR = np.linspace(-5, 7, 9)


def course(rates, first_skill=-2.0):
    """Denoising records at steps 0, 100, …, of these learning rates."""
    levels = np.arange(9)[::-1] * 100, LOG_SNR
    return [
        ProbeRecord(
            "denoising",
            100 * k,
            curves={"denoising_skill": Curve.around(*levels, np.full(9, 0.2 if k else first_skill), np.full(9, 0.05))},
            provenance={"learning_rate": rate},
        )
        for k, rate in enumerate(rates)
    ]


def test_a_constant_rate_is_told_that_a_falling_one_does_better():
    assert "has been 0.001 throughout" in recipe_advice([ProbeRecord("ddim", 0), *course([1e-3] * 3)])


COURSES = {
    "one cycle": course([1e-4, 1e-3, 1e-4]),
    "too few probes": course([1e-3] * 2),
    "rate not known": course([None] * 3),
    "its beginning is not known": course([1e-3] * 4)[1:],
    "a finetune": course([1e-3] * 3, first_skill=0.1),
    "no skill": [ProbeRecord("denoising", 0, provenance={"learning_rate": 1e-3}), *course([1e-3] * 4)[1:]],
    "nothing": [],
}


@pytest.mark.parametrize("name", COURSES)
def test_nothing_is_said_where_nothing_is_known(name):
    assert recipe_advice(COURSES[name]) == ""
