"""What clusters' exact denoisers say of the clusters is what Bayes' rule says of them."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

import known_denoisers as known
from ldmprobe import ClassConditioning, DiffusionModel
from ldmprobe.probing.class_information import CURVE, TOTAL, class_information, shortest_interval
from ldmprobe.probing.denoising import log_snr_grid
from ldmprobe.probing.draws import Draws
from ldmprobe.probing.held_out import HeldOut

CLASSES = 10


def found(number, network=known.ClassDenoiser, dropout=0.1):
    """Return what is found with so many draws, and beside it the clusters, the draws and their log-SNRs."""
    generator = torch.Generator().manual_seed(0)
    clusters, labels = known.Clusters(CLASSES, generator), torch.arange(number) % CLASSES
    model = DiffusionModel(torch.nn.Identity(), DDPMScheduler(), known.CLUSTERS_SHAPE)
    model.network = network(clusters, model.schedule)
    model.conditioning = ClassConditioning(CLASSES, dropout)
    held_out = HeldOut(clusters.of_clusters(labels, generator), {"class_labels": labels})
    timesteps = log_snr_grid(model)
    timesteps = timesteps[model.schedule.log_snr[timesteps] < 1]  # beyond, each latent tells its cluster
    draws = Draws.of(held_out, number, 0, model.device)
    with torch.no_grad():
        squared = draws.squared_errors(model, timesteps, number)
        information = class_information(model, held_out, draws, squared, timesteps, number)
    return information, (clusters, draws, model.schedule.log_snr[timesteps])


def test_an_exact_denoiser_of_clusters_tells_their_entropy_where_a_posterior_learns_it():
    """The total's standard error is 3 %."""
    information, (clusters, draws, log_snr) = found(1500)
    assert information.scalars[TOTAL] == pytest.approx(math.log(CLASSES), rel=0.06)
    assert information.scalars[f"{TOTAL}_half_width"] < 0.07 * math.log(CLASSES)

    def learned(level):
        """I(c; z) = ln K + E ln p(c|z), nats, of the class and a latent at this log-SNR."""
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-level))), math.sqrt(1 / (1 + math.exp(level)))
        posterior = clusters.posterior(alpha * draws.z0 + sigma * draws.noise, alpha, sigma)
        return math.log(CLASSES) + float(posterior.gather(1, draws.condition["class_labels"][:, None]).log().mean())

    low, high = (information.scalars[f"guidance_interval/{end}"] for end in ("low", "high"))
    assert learned(high) - learned(low) == pytest.approx(0.9 * math.log(CLASSES), rel=0.06)
    value = information.curves[CURVE].value
    between = np.cumsum((value[1:] + value[:-1]) / 2 * np.diff(log_snr.numpy()))
    expected = [learned(float(level)) for level in log_snr[1:]]
    np.testing.assert_allclose(between, expected, atol=0.12)  # both of finitely many draws
    assert f"--guidance-interval {low:.1f} {high:.1f}" in information.provenance["notes"][CURVE]


def test_nothing_is_advised_where_nothing_is_told():
    class Blind(known.ClassDenoiser):
        def forward(self, z_t, t, condition):
            return self.data.denoise(z_t, *self.levels(t))[0]

    blind, _ = found(64, Blind)
    assert blind.scalars[TOTAL] == 0
    assert not blind.provenance
    never_without, _ = found(64, dropout=0.0)
    assert not never_without.curves


def test_the_shortest_interval_of_a_normal_density_is_about_its_mean():
    x = np.linspace(-8, 9, 60)
    assert shortest_interval(x, np.exp(-((x - 1) ** 2) / 2)) == pytest.approx((1 - 1.645, 1 + 1.645), abs=0.02)
    low, high = shortest_interval(x, np.ones(60), most=2.0)  # all of it below log-SNR −6
    assert high - low == pytest.approx(1.8, abs=0.02)
    assert high < -5.98
