"""PCABasis against scikit-learn's exact PCA."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from ldmprobe.analysis.pca import PCABasis
from tests.helpers import FLOAT32, FLOAT64

# N, D, components: tall, wide, flat spectrum on either, small enough for the dense branch, fewer and more components
SIZES = [(300, 40, 2), (64, 500, 2), (200, 200, 2), (6, 3, 2), (4, 100, 2), (100, 40, 1), (100, 40, 5)]


def samples(n: int, d: int) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    return x * torch.linspace(2, 0.5, d) + torch.linspace(-1, 1, d)


@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_components_and_variances_equal_scikit_learns(n: int, d: int, k: int):
    x = samples(n, d)
    basis, theirs = PCABasis.fit(x, k), PCA(k, svd_solver="full").fit(x.double().numpy())
    components = theirs.components_
    components = components * np.sign(components[np.arange(k), np.abs(components).argmax(1)])[:, None]
    np.testing.assert_allclose(basis.components.numpy(), components, **FLOAT32)
    np.testing.assert_allclose(basis.variance.numpy(), theirs.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(basis.explained.numpy(), theirs.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(basis.mean.numpy(), theirs.mean_, **FLOAT32)


def test_largest_entry_of_each_component_is_positive_even_if_the_data_are_mirrored():
    x = samples(100, 40)
    for sign in (1, -1):
        components = PCABasis.fit(sign * x).components
        assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(PCABasis.fit(-x).components, PCABasis.fit(x).components, **FLOAT32)


def test_projection_equals_scikit_learns_and_has_the_stated_variance():
    x = samples(300, 40).double()
    basis = PCABasis.fit(x)
    theirs = PCA(2, svd_solver="full").fit(x.numpy())
    np.testing.assert_allclose(
        np.abs(basis.project(x).numpy()), np.abs(theirs.transform(x.numpy())), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(basis.project(x).var(0), basis.variance, **FLOAT32)


def test_scaled_projection_is_about_the_scaled_mean():
    x = samples(300, 40)
    basis = PCABasis.fit(x)
    torch.testing.assert_close(basis.project(0.3 * x, scale=0.3), 0.3 * basis.project(x), **FLOAT32)
    torch.testing.assert_close(basis.project(0.3 * basis.mean[None], scale=0.3), torch.zeros(1, 2), **FLOAT32)


def test_fit_is_deterministic():
    first, second = (PCABasis.fit(samples(64, 500)) for _ in range(2))
    assert torch.equal(first.components, second.components)
    torch.testing.assert_close(first.variance, second.variance, **FLOAT64)


def test_too_few_samples_are_an_error():
    with pytest.raises(ValueError, match=r"got 3 samples; expected at least 4"):
        PCABasis.fit(samples(3, 10))
