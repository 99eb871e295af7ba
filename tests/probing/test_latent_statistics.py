"""Statistics of real latents: fitted, and the same again from disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from ldmprobe import LatentCodec, LatentStatistics
from ldmprobe.analysis.basis import LatentBasis
from ldmprobe.probing.latent_statistics import encode_images
from tests.helpers import FLOAT32, gaussian_model, refused
from tests.probing.gaussian import draw


def latents(n: int, seed: int = 1) -> torch.Tensor:
    return draw(gaussian_model(), n, seed).float()


def parts_of(reference: LatentStatistics) -> tuple[object, ...]:
    basis = reference.basis
    return reference, basis, basis.rotation, basis.optimum, reference.pca


@pytest.mark.parametrize(("n", "kind"), [(100, "pca"), (20, "dct")])
def test_saved_and_loaded_it_is_the_same(n: int, kind: str, tmp_path: Path):
    reference = LatentStatistics.fit(latents(n))
    path = tmp_path / "new folder" / "reference.safetensors"
    reference.save(path)
    again = LatentStatistics.load(path)
    assert again.basis.kind == reference.basis.kind == kind
    assert again.basis.shape == reference.basis.shape == (2, 4, 4)
    for one, other in zip(parts_of(again), parts_of(reference), strict=True):
        for name, value in vars(other).items():
            assert not isinstance(value, torch.Tensor) or torch.equal(getattr(one, name), value), name
    assert again.basis.optimum.known_to == reference.basis.optimum.known_to
    assert again.pca.total_variance == reference.pca.total_variance
    assert again.num_latents == n
    assert again.fingerprint == reference.fingerprint
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    z = latents(5, seed=2)
    assert torch.equal(again.basis.rotate(z), reference.basis.rotate(z))


def test_saving_replaces_what_was_there(tmp_path: Path):
    path = tmp_path / "reference.safetensors"
    LatentStatistics.fit(latents(20)).save(path)
    LatentStatistics.fit(latents(30)).save(path)
    assert LatentStatistics.load(path).num_latents == 30


def test_fingerprint_follows_the_latents():
    assert LatentStatistics.fit(latents(100)).fingerprint == LatentStatistics.fit(latents(100)).fingerprint
    assert LatentStatistics.fit(latents(100)).fingerprint != LatentStatistics.fit(latents(100, seed=2)).fingerprint
    assert LatentStatistics.fit(latents(100)).fingerprint != LatentStatistics.fit(1.01 * latents(100)).fingerprint


def test_bases_are_those_of_the_latents_and_the_first_512_are_the_cloud_on_two_principal_components():
    z = latents(600)
    reference = LatentStatistics.fit(z)
    torch.testing.assert_close(reference.basis.mean, LatentBasis.fit(z).mean)
    flat = z.flatten(1).double().numpy()
    theirs = PCA(2, svd_solver="full").fit(flat)
    np.testing.assert_allclose(reference.pca.variance.numpy(), theirs.explained_variance_, rtol=1e-5)
    assert reference.cloud.shape == (512, 2)
    np.testing.assert_allclose(
        reference.cloud.abs().numpy(), np.abs(theirs.transform(flat[:512])), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_an_error(bad: float):
    z = latents(20)
    z[3, 0, 0, 0] = bad
    with refused("not finite; encode in float32 or bfloat16"):
        LatentStatistics.fit(z)


def test_encoding_joins_batches_through_the_codec():
    images = latents(10)
    codec = LatentCodec(scale=2.0)
    torch.testing.assert_close(encode_images(codec, images.split(4)), 2 * images, **FLOAT32)
