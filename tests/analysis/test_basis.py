"""LatentBasis: an isometry in which real latents are uncorrelated."""

import numpy as np
import pytest
import torch
from scipy import fft

from ldmprobe.analysis import basis as basis_module
from ldmprobe.analysis.basis import LatentBasis
from tests.helpers import FLOAT32, FLOAT64

SHAPE = (3, 4, 6)  # not square, so that rows and columns cannot be mixed up


def latents(n: int) -> torch.Tensor:
    """Correlated in every way: white noise through a fixed mixing matrix."""
    generator = torch.Generator().manual_seed(0)
    d = int(np.prod(SHAPE))
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + 0.5).view(n, *SHAPE)


def stationary_latents(n: int) -> torch.Tensor:
    """Channels mixed, neighbors correlated: moving averages of white noise, like images."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(n, 3, SHAPE[1] + 4, SHAPE[2] + 4, generator=generator, dtype=torch.float64)
    smooth = wide.unfold(2, 5, 1).mean(-1).unfold(3, 5, 1).mean(-1)
    mixing = torch.tensor([[1.0, 0.5, 0.2], [0.0, 1.0, 0.7], [0.0, 0.0, 0.4]], dtype=torch.float64)
    return torch.einsum("kc,nchw->nkhw", mixing, smooth)


def mean_correlation(rows: torch.Tensor) -> float:
    """Mean |correlation| between different columns."""
    correlation = np.abs(np.corrcoef(rows.numpy().T))
    d = len(correlation)
    return float((correlation.sum() - d) / (d * (d - 1)))


@pytest.mark.parametrize(("n", "kind"), [(144, "pca"), (143, "dct"), (8, "dct")])
def test_exact_pca_needs_two_latents_per_direction(n: int, kind: str):
    assert LatentBasis.fit(latents(n)).kind == kind


def test_large_latents_get_the_cosine_basis(monkeypatch):
    monkeypatch.setattr(basis_module, "MAX_PCA_DIMENSION", 71)
    assert LatentBasis.fit(latents(200)).kind == "dct"


@pytest.mark.parametrize("n", [200, 50])
def test_rotation_is_an_isometry_that_keeps_the_dtype(n: int):
    x = latents(n)
    basis = LatentBasis.fit(x)
    rotated, single = basis.rotate(x), basis.rotate(x.float())
    torch.testing.assert_close(rotated @ rotated.T, x.flatten(1) @ x.flatten(1).T, **FLOAT64)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), rotated, rtol=1e-4, atol=10 * FLOAT32["atol"])


@pytest.mark.parametrize("n", [200, 50])
def test_moments_are_those_of_the_latents_that_did_not_choose_the_directions(n: int):
    x = latents(n)
    basis = LatentBasis.fit(x)
    rotated = basis.rotate(x)[1::2].numpy()
    np.testing.assert_allclose(basis.mean.numpy(), rotated.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(basis.variance.numpy(), rotated.var(0, ddof=1), rtol=1e-9)
    without = np.delete(rotated, slice(3, None, 16), axis=0)  # the fourth of 16 groups
    np.testing.assert_allclose(basis.mean_without[3].numpy(), without.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(basis.variance_without[3].numpy(), without.var(0, ddof=1), rtol=1e-9)


def test_pca_directions_decorrelate_the_latents_that_chose_them_exactly():
    x = latents(200)
    covariance = np.cov(LatentBasis.fit(x).rotate(x)[::2].numpy().T)
    eigenvalues = np.linalg.eigvalsh(np.cov(x[::2].flatten(1).numpy().T))[::-1]
    np.testing.assert_allclose(covariance, np.diag(eigenvalues), atol=1e-10)


def test_variances_along_the_directions_are_what_further_latents_have():
    """Of white latents every variance is 1; those of the latents that made the directions run from .02 to 2.8."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4 * 64, 1, 8, 8, generator=generator, dtype=torch.float64)
    basis = LatentBasis.fit(z)
    error = (2 / 127) ** 0.5  # standard error of a variance of 128 latents
    assert basis.kind == "pca"
    assert abs(float(basis.variance[:16].mean()) - 1) < 3 * error / 4
    assert abs(float(basis.variance[-16:].mean()) - 1) < 3 * error / 4


def test_a_direction_without_variance_is_told_from_one_with_little():
    z = latents(400)
    z[:, 0, 0, 0] = 0.7  # a pixel that is the same in each
    z[:, 1, 1, 1] = 0.03 * z[:, 1, 1, 1]
    basis = LatentBasis.fit(z.float().double())
    assert int((~basis.varies).sum()) == 1
    assert float(basis.variance[~basis.varies]) < 1e-12


def test_cosine_basis_decorrelates_image_like_latents_nearly():
    x = stationary_latents(2000)
    basis = LatentBasis.fit(x[:100])
    assert basis.kind == "dct"
    # Chance level at N = 2000 is √(2/π)/√N = .018.
    assert mean_correlation(x.flatten(1)) > 0.2
    assert mean_correlation(basis.rotate(x)) < 0.06


def test_cosine_basis_is_scipys_dct_after_the_rotation_of_channels():
    x = latents(50)
    basis = LatentBasis.fit(x)
    mixed = np.einsum("kc,nchw->nkhw", basis.rotation.matrix.numpy(), x.numpy())
    expected = fft.dctn(mixed, axes=(2, 3), norm="ortho").reshape(50, -1)
    np.testing.assert_allclose(basis.rotate(x).numpy(), expected, rtol=1e-10, atol=1e-12)


def test_channels_of_the_cosine_basis_are_principal_components():
    x = latents(50)
    flat = x[::2].movedim(1, -1).reshape(-1, 3).numpy()
    rotation = LatentBasis.fit(x).rotation.matrix.numpy()
    covariance = np.cov((flat @ rotation.T).T)
    np.testing.assert_allclose(covariance, np.diag(np.linalg.eigvalsh(np.cov(flat.T))[::-1]), atol=1e-12)
