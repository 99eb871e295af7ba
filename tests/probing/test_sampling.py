"""Sampling: what is checked before the first step, and what tells one way of sampling from another."""

import pytest
import torch

from ldmprobe.diffusion.grids import KarrasGrid, LogSNRGrid
from ldmprobe.diffusion.processes import VPSDE, SubVPSDE
from ldmprobe.diffusion.samplers import DDIM, AnnealedLangevin
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.sampling import Sampling, grid_fingerprint, sample_trajectory
from ldmprobe.probing.sampling_probe import probe_sampling
from tests.helpers import gaussian_model, refused, sd_scheduler, tiny_unet
from tests.probing.gaussian import exact_reference


@pytest.mark.parametrize("grid", [LogSNRGrid(), KarrasGrid()])
def test_a_network_that_looks_its_timesteps_up_is_refused_between_them(grid):
    model = DiffusionModel(
        tiny_unet(time_embedding_type="learned", num_train_timesteps=1000), sd_scheduler(), (2, 8, 8)
    )
    sampling = Sampling(num_samples=2, num_steps=3, grid=grid)
    with refused(r"asks UNet2DModel at timestep \d+\.\d+, and it takes whole timesteps only.*`ScheduleGrid`"):
        sampling.levels(model)
    Sampling(num_samples=2, num_steps=3).levels(model)


def test_a_network_is_told_fractions_of_its_timesteps_as_they_are():
    unet, told = tiny_unet(), []
    model = DiffusionModel(unet, sd_scheduler(), (2, 8, 8))
    handle = unet.register_forward_pre_hook(lambda _, args, given: told.append(given["timestep"]), with_kwargs=True)
    sampling = Sampling(num_samples=2, num_steps=4, grid=LogSNRGrid())
    grid = sampling.levels(model)
    told.clear()
    with torch.no_grad():
        list(sample_trajectory(model, sampling, grid, torch.arange(2)))
    handle.remove()
    torch.testing.assert_close(torch.stack([t[0].double() for t in told]), grid.timesteps, rtol=1e-6, atol=0)
    assert float(grid.timesteps[1]) % 1 != 0


def test_two_grids_are_two_ways_of_sampling_and_the_default_says_nothing_new():
    model = gaussian_model()
    default, karras = Sampling(), Sampling(grid=KarrasGrid(rho=5.0))
    assert karras.provenance(model)["grid"] == "karras, rho 5.0"
    assert {"sampler": "ddim", "timestep_spacing": "leading"}.items() <= default.provenance(model).items()
    assert default.provenance(model).keys().isdisjoint({"grid", "sampler_settings"})
    grids = [each.grid.levels(model.schedule, 50) for each in (default, karras)]
    fingerprints = [each.fingerprints(model, grid) for each, grid in zip((default, karras), grids, strict=True)]
    assert fingerprints[0]["grid"] != fingerprints[1]["grid"]
    assert fingerprints[0]["sampler"] == fingerprints[1]["sampler"]


def test_two_etas_are_two_samplers_in_the_record():
    model = gaussian_model()
    sampling = [Sampling(sampler=DDIM(eta=eta)) for eta in (0.0, 0.5, 1.0)]
    assert len({each.fingerprints(model, each.levels(model))["sampler"] for each in sampling}) == 3
    assert sampling[1].provenance(model)["sampler"] == "ddim, eta 0.5"
    assert sampling[1].provenance(model)["sampler_settings"] == {"eta": 0.5}


def test_two_processes_of_one_alpha_are_two_grids():
    """VP and sub-VP share α and what the network is told, but not σ."""
    vp, sub_vp = (process().native_grid(10) for process in (VPSDE, SubVPSDE))
    assert torch.equal(vp.alpha_t.float(), sub_vp.alpha_t.float())
    assert grid_fingerprint(vp) != grid_fingerprint(sub_vp)


def test_what_is_to_be_found_by_the_ideal_is_refused_of_a_sampler_that_clips():
    model = gaussian_model(clip_sample=True)
    with refused(r"sampler is annealed-langevin, step auto.* clips x̂_0, here to ±1.* `clip_sample: false`"):
        Sampling(8, 12, AnnealedLangevin(step="auto")).levels(model, real=True)


def test_a_step_left_to_be_found_is_found_from_the_probes_real_latents_and_told():
    model = gaussian_model()
    sampling = Sampling(8, 12, AnnealedLangevin(step="auto", num_steps_per_level=2), LogSNRGrid())
    with refused(r"step of AnnealedLangevin is 'auto', which is found from real latents, and there are none"):
        sampling.levels(model)
    record = probe_sampling(model, exact_reference(model), sampling)
    found = record.provenance["sampler_settings"]["step"]
    assert 0 < found <= 1
    assert record.provenance["sampler"] == f"annealed-langevin, step {found}, num_steps_per_level 2"
    assert sampling.sampler.step == "auto"
