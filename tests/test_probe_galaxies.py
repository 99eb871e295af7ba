"""scripts/probe_galaxies.py: what it reads from arrays is the network that they are of, and it probes what it has
read."""

import importlib.util
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

import probe_galaxies as galaxies
from ldmprobe.diffusion.processes import VPSDE
from tests.helpers import refused

PIXELS, HIDDEN, WIDE, BLOCKS = 8, 6, 5, 2
PATCHES = (PIXELS // 4) ** 2


def arrays() -> list[np.ndarray]:
    """Of a small network, in the order of galaxygrad's files."""
    draw = np.random.default_rng(0)

    def some(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float32) / 3

    def mlp(size: int) -> list[np.ndarray]:
        return [some(WIDE, size), some(WIDE), some(size, WIDE), some(size)]

    blocks = []
    for _ in range(BLOCKS):
        norms = [some(HIDDEN, PATCHES), some(HIDDEN, PATCHES), some(PATCHES, HIDDEN), some(PATCHES, HIDDEN)]
        blocks += [*mlp(PATCHES), *mlp(HIDDEN), *norms]
    ends = [some(HIDDEN, 2, 4, 4), some(HIDDEN, 1, 1), some(1, HIDDEN, 4, 4), some(1, 1, 1)]
    return [*ends, *blocks, some(HIDDEN, PATCHES), some(HIDDEN, PATCHES), np.array(10.0, np.float32)]


def score(z: np.ndarray, u: float, weights: list[np.ndarray]) -> np.ndarray:
    """The network as JAX has it, in NumPy: one image (1, H, W)."""
    w_in, b_in, w_out, b_out, *rest = weights
    n = PIXELS // 4

    def norm(y, weight, bias):
        return (y - y.mean()) / np.sqrt(y.var() + 1e-5) * weight + bias

    def mlp(rows, w1, b1, w2, b2):
        return np.maximum(rows @ w1.T + b1, 0) @ w2.T + b2

    both = np.concatenate([z, np.full_like(z, u)])
    tiles = both.reshape(2, n, 4, n, 4)
    y = (np.einsum("oikl,iakbl->oab", w_in, tiles) + b_in).reshape(HIDDEN, PATCHES)
    for start in range(0, BLOCKS * 12, 12):
        block = rest[start : start + 12]
        y = y + mlp(norm(y, *block[8:10]), *block[:4])
        y = (y.T + mlp(norm(y.T, *block[10:12]), *block[4:8])).T
    y = norm(y, *rest[-3:-1]).reshape(HIDDEN, n, n)
    # A correlation with the input spread out by the stride, and zeros between: its kernel comes out flipped.
    return np.einsum("oikl,iab->oakbl", w_out[:, :, ::-1, ::-1], y).reshape(1, PIXELS, PIXELS) + b_out


def save(path: Path, weights: list[np.ndarray]) -> Path:
    with path.open("wb") as file:
        for array in weights:
            np.save(file, array)
    return path


@pytest.fixture
def model(tmp_path):
    return galaxies.galaxy_model(save(tmp_path / "eqx_small.eqx", arrays()))


def test_the_network_read_is_that_of_the_arrays(model):
    assert model.latent_shape == (1, PIXELS, PIXELS)
    z, weights = np.random.default_rng(1).normal(size=(3, 1, PIXELS, PIXELS)).astype(np.float32), arrays()
    for u in (0.01, 0.5, 1.0):
        answer = model.predict(torch.from_numpy(z), torch.full((3,), u), {})
        expected = np.stack([-np.sqrt(1 - np.exp(-10 * u)) * score(each, u, weights) for each in z])
        torch.testing.assert_close(answer.detach(), torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5)


def test_its_process_is_that_of_beta_one_over_a_time_of_ten(model):
    t = torch.tensor([0.01, 1.0, 10.0], dtype=torch.float64)
    k = (t * 100).round().long() - 1
    torch.testing.assert_close(model.schedule.alpha[k], (-t / 2).exp())
    torch.testing.assert_close(model.schedule.model_time[k].double(), t / 10, rtol=1e-6, atol=0)
    assert isinstance(model.schedule, VPSDE)


def test_it_is_probed_by_three_samplers(model):
    with torch.no_grad():  # a network that has learned nothing is to stay finite: ε̂ is about 0
        for parameter in model.network.patches:
            parameter.mul_(0.1)
    sizes = Namespace(num_samples=8, num_steps=3, num_reference=64, num_held_out=32)
    *sampled, denoised = galaxies.probes(model, sizes)
    assert [record.probe for record in sampled] == ["ddim", "dpmpp_2m", "euler_maruyama"]
    for record in sampled:
        assert np.isfinite(record.curves["step_kl_ideal"].value).all()
        assert "pca" in record.scatters
    assert np.isfinite(denoised.curves["prediction_gain"].value).all()


def test_the_package_has_to_be_there(monkeypatch, tmp_path):
    monkeypatch.setattr(galaxies, "PACKAGE", "no_such_package_of_galaxies")
    with refused("no_such_package_of_galaxies is not installed: `pip install --no-deps"):
        galaxies.installed("hsc_ScoreNet32")
    (tmp_path / "some_galaxies").mkdir()
    (tmp_path / "some_galaxies" / "__init__.py").write_text("")
    save(tmp_path / "some_galaxies" / "eqx_ZTF_ScoreNet32.eqx", arrays())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(galaxies, "PACKAGE", "some_galaxies")
    with refused("has no network 'hsc'; it has ZTF_ScoreNet32"):
        galaxies.installed("hsc")
    assert galaxies.installed("ZTF_ScoreNet32").is_file()


def test_the_real_network_s_gain_is_one_on_its_own_samples():
    if importlib.util.find_spec(galaxies.PACKAGE) is None:
        pytest.skip("galaxygrad is not installed")
    model = galaxies.galaxy_model(galaxies.installed("hsc_ScoreNet32"))
    x0 = galaxies.drawn(model, 32, seed=1)
    epsilon = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    for log_snr in (-4.0, 0.0, 4.0):
        alpha, sigma, told = (float(each) for each in model.schedule.level_at(torch.tensor([log_snr])))
        with torch.no_grad():
            answer = model.predict(alpha * x0 + sigma * epsilon, torch.full((32,), told), {})
        assert float((epsilon * answer).mean() / answer.pow(2).mean()) == pytest.approx(1, abs=0.03)
