"""Reverse water-filling against a linear β-VAE that is minimized, and PCA against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from ldmprobe.analysis.rate_distortion import LinearAutoencoder, reverse_water_filling, water_level
from tests.helpers import FLOAT64


def test_a_minimized_linear_vae_fills_the_water_from_below():
    """Loss of one direction: ½[ℓ(1 − w g)² + g² v]/θ + KL(N(w x, v) ‖ N(0, 1)), encoder w, decoder g, variance v."""
    spectrum, theta = torch.tensor([4.0, 1.0, 0.31, 0.29, 0.05], dtype=torch.float64), 0.3
    w, g, log_v = (torch.full((5,), x, dtype=torch.float64, requires_grad=True) for x in (0.5, 0.5, -1.0))

    def distortion():
        return spectrum * (1 - w * g) ** 2 + g**2 * log_v.exp()

    def rate():
        return 0.5 * (w**2 * spectrum + log_v.exp() - 1 - log_v)

    optimizer = torch.optim.LBFGS([w, g, log_v], max_iter=4000, tolerance_grad=1e-12, tolerance_change=0,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def loss():
        optimizer.zero_grad()
        value = (distortion() / (2 * theta) + rate()).sum()
        value.backward()
        return value

    optimizer.step(loss)
    best = reverse_water_filling(spectrum, theta)
    assert best.active.tolist() == [True, True, True, False, False]
    # A direction at ℓ ≈ θ is flat: its loss is of fourth order in the gain.
    torch.testing.assert_close(best.distortion, distortion().detach(), rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(best.rate, rate().detach(), rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(best.posterior_variance, log_v.detach().exp(), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(best.decoder_gain, g.detach().abs(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("theta", [0.07, 0.3, 0.5, 3.0])
def test_the_water_level_of_a_rate_is_where_that_rate_is_spent(theta):
    spectrum = torch.tensor([0.05, 4.0, 0.31, 0.0, 1.0])
    rate = float(reverse_water_filling(spectrum, theta).rate.sum())
    assert water_level(spectrum, rate) == pytest.approx(theta, rel=1e-6)


@pytest.mark.parametrize("samples", [60, 12])
def test_pca_is_the_baseline(samples):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((n, 20)) * np.arange(1, 21) + 3 for n in (samples, 7))
    reference = PCA(5).fit(x)
    expected = ((reference.inverse_transform(reference.transform(y)) - y) ** 2).sum(1)
    found = LinearAutoencoder.fit(torch.from_numpy(x), 5).squared_error(torch.from_numpy(y))
    np.testing.assert_allclose(found, expected, **FLOAT64)
    assert len(LinearAutoencoder.fit(torch.from_numpy(x), 100).directions) == min(20, samples - 1)


def test_pca_of_samples_that_come_twice_is_that_of_each_once():
    x, y = torch.randn(40, 200, generator=torch.Generator().manual_seed(0)).split([20, 20])
    once, twice = (LinearAutoencoder.fit(each, 200) for each in (x, torch.cat([x, x])))
    assert (len(once.directions), len(twice.directions)) == (19, 19)
    torch.testing.assert_close(twice.squared_error(y), once.squared_error(y), **FLOAT64)
    assert len(LinearAutoencoder.fit(x[:1].expand(9, -1), 5).directions) == 0
