"""The radial spectrum against scipy's transform and a power law that was put in."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from ldmprobe.analysis.radial_spectrum import cosine_coefficients, radial_mean, spectral_slope
from tests.helpers import FLOAT64


def test_a_power_law_is_found_again():
    rng, size = np.random.default_rng(0), 32
    radius = np.hypot(*np.indices((size, size))).round()
    amplitude = np.where(radius > 0, radius, 1) ** -1.2
    images = idctn(rng.standard_normal((400, 2, size, size)) * amplitude, axes=(2, 3), norm="ortho")
    coefficients = cosine_coefficients(torch.from_numpy(images))
    np.testing.assert_allclose(coefficients, dctn(images, axes=(2, 3), norm="ortho"), **FLOAT64)
    spectrum = radial_mean(coefficients.var(0))
    assert spectrum.shape == (size,)
    assert spectral_slope(spectrum) == pytest.approx(-2.4, abs=0.03)  # its standard error is 0.02
    # A latent of fewer pixels keeps the frequencies it has on the same axis.
    assert spectral_slope(spectrum[:8]) == pytest.approx(-2.4, abs=0.08)
    assert np.isnan(spectral_slope(spectrum[:3]))
