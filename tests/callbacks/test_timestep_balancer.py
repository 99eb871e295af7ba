"""TimestepBalancer: what it decides, when it changes nothing, and that a run that was broken off goes on alike."""

import numpy as np
import pytest
import torch

from ldmprobe import BalancedTimesteps, Controller, RecordStore, UniformTimesteps
from ldmprobe.callbacks import TimestepBalancer
from tests.helpers import refused
from tests.training.test_latent_diffusion import assert_same_state, digits, module, trainer


class Wish(Controller):
    """Wants the same at all times: towards low noise."""

    def density(self, measured):
        return np.exp(0.3 * measured.log_snr)


def balancer(controller=None, begin_at_skill=-np.inf, **settings):
    return TimestepBalancer(2, controller, 16, 32, num_reference=256, begin_at_skill=begin_at_skill, **settings)


def run(folder, callback, steps=6, timesteps=None, **options):
    model = module(timesteps=timesteps or BalancedTimesteps())
    fit = trainer(folder, max_steps=steps, callbacks=[callback])
    fit.fit(model, digits(), **options)
    return model, fit


def drawn(model):
    return model.timesteps.probabilities(model.schedule)


def test_the_sampler_is_steered_to_what_the_controller_wants(tmp_path):
    model, _ = run(tmp_path, balancer(Wish(), max_ratio=100), steps=4)
    records = RecordStore(tmp_path).read("balance")
    assert [record.step for record in records] == [0, 2, 4]
    assert [record.scalars["balance_steered"] for record in records] == [1, 0, 0]  # wanted once, then nothing moves
    level = records[0].curves["balance_density"]
    wanted = np.exp(0.3 * level.log_snr)
    np.testing.assert_allclose(level.value, wanted / wanted.mean())
    p = drawn(model)
    assert float(p.sum()) == pytest.approx(1)
    assert float(p[:100].sum()) > 2 * 0.1  # of uniform


def test_nothing_is_steered_before_the_model_has_learnt_what_all_levels_share(tmp_path):
    model, _ = run(tmp_path, balancer(Wish(), begin_at_skill=-0.1), steps=2)
    assert not model.timesteps.is_steered
    records = RecordStore(tmp_path).read("balance")
    assert not any(record.scalars["balance_steered"] for record in records)
    assert all((record.curves["balance_target"].value == 1).all() for record in records)


def test_it_begins_at_the_median_skill_and_does_not_stop_again(tmp_path):
    run(tmp_path / "probed", balancer(), steps=4)
    steps = RecordStore(tmp_path / "probed").read("balance")
    skill = [record.scalars["balance_skill"] for record in steps]
    assert skill[0] < skill[1] < skill[2]
    run(tmp_path, balancer(Wish(), begin_at_skill=(skill[0] + skill[1]) / 2), steps=4)
    targets = [record.curves["balance_target"].value for record in RecordStore(tmp_path).read("balance")]
    assert [bool((target != 1).any()) for target in targets] == [False, True, True]


def test_weights_are_a_power_of_the_held_out_error(tmp_path):
    weights = {}
    for power in (0.0, 0.5, 1.0):
        model, _ = run(tmp_path / str(power), balancer(Wish(), equalize=power), steps=1)
        level = RecordStore(tmp_path / str(power)).read("balance")[0].curves["balance_weight"]
        weights[power] = level.value
        factor = model.timesteps.loss_factor(model.schedule)[torch.from_numpy(level.timestep.copy())]
        np.testing.assert_allclose(factor, level.value)
    assert weights[0.0].tolist() == [1.0] * len(weights[0.0])
    assert not np.allclose(weights[1.0], 1)
    np.testing.assert_allclose(weights[0.5] ** 2, weights[1.0])


def test_progress_is_the_fall_of_the_held_out_error(tmp_path):
    run(tmp_path, balancer(smoothing=0.5, hysteresis=0.0), steps=4)
    records = RecordStore(tmp_path).read("balance")
    progress = [record.curves["balance_progress"].value for record in records]
    assert not progress[0].any()
    assert progress[1].any()
    assert records[0].scalars["balance_steered"] == 0  # no opinion yet
    assert records[1].scalars["balance_steered"] == 1
    for record in records[1:]:
        target = record.curves["balance_target"].value
        assert (target >= 1 / 8 - 1e-9).all()
        assert (target <= 8 + 1e-9).all()


def test_the_floor_is_kept(tmp_path):
    model, _ = run(tmp_path, balancer(Wish()), steps=1, timesteps=BalancedTimesteps(floor=0.5))
    assert bool((drawn(model) >= 0.5 * UniformTimesteps().probabilities(model.schedule)).all())


def test_nothing_moves_for_less_than_the_hysteresis(tmp_path):
    model, _ = run(tmp_path, balancer(Wish(), hysteresis=0.999), steps=2)
    records = RecordStore(tmp_path).read("balance")
    assert all(0.1 < record.scalars["balance_moved"] < 0.999 for record in records)
    assert torch.equal(drawn(model), UniformTimesteps().probabilities(model.schedule))


def test_a_dry_run_says_what_it_would_do_and_changes_nothing(tmp_path):
    plain, _ = run(tmp_path / "plain", balancer(Wish(), dry_run=True), steps=3)
    without = module(timesteps=BalancedTimesteps())
    trainer(tmp_path / "without", max_steps=3).fit(without, digits())
    assert_same_state(dict(plain.named_parameters()), dict(without.named_parameters()))
    assert not plain.timesteps.is_steered
    records = RecordStore(tmp_path / "plain").read("balance")
    assert all(record.scalars["balance_moved"] > 0.1 for record in records)
    assert not any(record.scalars["balance_steered"] for record in records)
    assert all((record.curves["balance_density"].value == 1).all() for record in records)


def test_a_dry_run_needs_no_sampler_of_its_own(tmp_path):
    run(tmp_path, balancer(Wish(), dry_run=True), steps=1, timesteps=UniformTimesteps())
    assert RecordStore(tmp_path).read("balance")


@pytest.mark.parametrize("broken_off", [2, 3])
def test_a_run_that_was_broken_off_goes_on_alike(tmp_path, broken_off):
    """Also between two decisions: none is made where training ends, over the few steps since the last."""
    whole, _ = run(tmp_path / "whole", balancer(hysteresis=0.0), steps=4)
    _, first = run(tmp_path / "parts", balancer(hysteresis=0.0), steps=broken_off)
    first.save_checkpoint(tmp_path / "part.ckpt")
    parts, _ = run(tmp_path / "parts", balancer(hysteresis=0.0), steps=4, ckpt_path=str(tmp_path / "part.ckpt"))
    assert torch.equal(drawn(whole), drawn(parts))
    assert_same_state(whole.network.state_dict(), parts.network.state_dict())
    for name in ("balance_progress", "balance_target", "balance_density"):
        values = [RecordStore(tmp_path / of).read("balance")[-1].curves[name].value for of in ("whole", "parts")]
        np.testing.assert_array_equal(*values)


def test_a_model_that_cannot_be_steered_is_an_error_before_training(tmp_path):
    with refused("LatentDiffusion has 0; set the model's `timesteps"):
        run(tmp_path, balancer(), timesteps=UniformTimesteps())
    assert not (tmp_path / "probes").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("smoothing", 1),
        ("max_ratio", 1),
        ("hysteresis", 1),
        ("hysteresis", -0.1),
        ("equalize", 2),
        ("begin_at_skill", 1),
    ],
)
def test_numbers_out_of_range_are_errors(name, value):
    with refused(name):
        TimestepBalancer(**{name: value})
