"""Noise that belongs to the sample."""

import numpy as np
import torch
from scipy import stats

from ldmprobe.diffusion.noise import sample_noise


def test_a_samples_noise_does_not_depend_on_batch_order_or_company():
    whole = sample_noise(range(10), (2, 3), seed=0)
    assert whole.shape == (10, 2, 3)
    assert whole.dtype == torch.float32
    assert torch.equal(sample_noise([7, 3], (2, 3), seed=0), whole[[7, 3]])
    assert torch.equal(torch.cat([sample_noise([i], (2, 3), seed=0) for i in range(10)]), whole)


def test_noise_differs_between_seeds_streams_and_samples():
    draws = [sample_noise([i], (4,), seed, stream) for i in (0, 1) for seed in (0, 1) for stream in (0, 1)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 8


def test_noise_is_standard_normal_within_and_across_samples():
    noise = sample_noise(range(2000), (20,), seed=0).double().numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise.T)[np.triu_indices(20, 1)]).max() < 5 / 2000**0.5  # 5 standard errors, 190 pairs
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 4 / 38_000**0.5


def test_noise_of_no_samples_is_empty():
    assert sample_noise([], (2, 3), seed=0).shape == (0, 2, 3)
