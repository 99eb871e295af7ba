"""A short run of many probes, shared by the tests of this folder."""

from collections import defaultdict

import pytest

from ldmprobe import BalancedTimesteps, RecordStore
from ldmprobe.callbacks import (
    DDIMProbe,
    DenoisingProbe,
    SampleQuality,
    TimestepBalancer,
    TrainingLoss,
    TrainingObjective,
)
from tests.training.test_latent_diffusion import digits, module, trainer


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    probes = [
        DDIMProbe(2, num_samples=16, num_steps=6, num_reference=256),
        DenoisingProbe(2, num_images=16, num_draws=64, num_reference=256),
        TrainingLoss(2),
        TrainingObjective(2),
        SampleQuality("builtin:digits", 2, num_samples=16, num_steps=2, num_real=64, kid_subset_size=8),
        TimestepBalancer(2, num_images=16, num_draws=32, num_reference=256),
    ]
    trainer(folder, max_steps=4, callbacks=probes).fit(module(timesteps=BalancedTimesteps()), digits())
    return folder


@pytest.fixture(scope="session")
def records(run_dir):
    """The records by their probe."""
    found = defaultdict(list)
    for record in RecordStore(run_dir).read():
        found[record.probe].append(record)
    return found
