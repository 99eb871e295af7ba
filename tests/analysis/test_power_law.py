"""The power law's interval, on curves whose future is known."""

import numpy as np
import pytest

from ldmprobe.analysis.power_law import FEWEST, extrapolate

T = np.arange(1, 9) * 100.0


def test_a_power_law_without_scatter_goes_on_as_it_is():
    found = extrapolate(T, 140 + 300 * T**-0.5, 1600)
    assert found.value == pytest.approx(140 + 300 * 1600**-0.5, abs=0.2)
    assert found.upper - found.lower < 0.5
    # What rises is no fall.
    assert extrapolate(T, 140 + 0.01 * T, 1600).value == pytest.approx(140 + 0.01 * T.mean())


def test_its_interval_holds_what_is_measured_19_times_in_20():
    generator, repeats, covered = np.random.default_rng(0), 150, 0
    for _ in range(repeats):
        exponent = generator.uniform(0.1, 1.0)
        course = 140 + 50 * (np.append(T, 1600) / 100) ** -exponent + 0.3 * generator.standard_normal(len(T) + 1)
        found = extrapolate(T, course[:-1], 1600)
        covered += found.lower <= course[-1] <= found.upper
    error = (0.95 * 0.05 / repeats) ** 0.5
    assert covered / repeats > 0.95 - 3 * error


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match=f"got 5 points; expected at least {FEWEST}"):
        extrapolate(T[:5], T[:5], 1600)
