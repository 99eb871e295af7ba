"""TrainingClock: what training costs, and what does not count."""

import pytest

from ldmprobe import BalancedTimesteps, RecordStore
from ldmprobe.callbacks import DenoisingProbe, TimestepBalancer, TrainingClock
from tests.helpers import refused
from tests.training.test_latent_diffusion import digits, module, trainer


def test_clock_counts_training_and_its_own_helpers_but_no_probes(tmp_path):
    probe = DenoisingProbe(2, num_images=16, num_draws=64, num_reference=128)
    balancer = TimestepBalancer(2, num_images=16, num_draws=32, num_reference=128)
    clock = TrainingClock(2)
    callbacks = [clock, probe, balancer]
    trainer(tmp_path, max_steps=4, callbacks=callbacks).fit(module(timesteps=BalancedTimesteps()), digits())
    records = RecordStore(tmp_path).read("clock")
    seconds = [record.scalars["training_seconds"] for record in records]
    assert [record.step for record in records] == [0, 2, 4]
    assert 0 == seconds[0] < seconds[1] < seconds[2]
    # At step 2 the balancer has decided at step 0 only; what it costs at step 2 is in the record of step 4.
    balance = [record.scalars["balance_seconds"] for record in RecordStore(tmp_path).read("balance")]
    own = [seconds[1] - balance[0], seconds[2] - balance[1]]
    assert 0 < own[0] < own[1] == pytest.approx(clock.state_dict()["seconds"])


def test_clock_behind_a_probe_is_refused(tmp_path):
    callbacks = [DenoisingProbe(2, num_images=16, num_draws=32, num_reference=128), TrainingClock(2)]
    with refused("after DenoisingProbe among the callbacks"):
        trainer(tmp_path, max_steps=1, callbacks=callbacks).fit(module(), digits())
