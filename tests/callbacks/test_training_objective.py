"""TrainingObjective: a record of each objective, also where it changes."""

import lightning as L
import numpy as np
import pytest
import torch

from ldmprobe.callbacks import TrainingObjective
from ldmprobe.diffusion.adaptive_timesteps import AdaptiveLoss
from ldmprobe.diffusion.balanced_timesteps import BalancedTimesteps
from ldmprobe.diffusion.weighting import LearnedUncertainty
from ldmprobe.io.store import RecordStore
from tests.helpers import refused
from tests.training.test_latent_diffusion import digits, module, trainer


@pytest.mark.parametrize("changing", [{"timesteps": AdaptiveLoss}, {"weighting": LearnedUncertainty}])
def test_an_objective_that_changes_has_a_record_every_n_steps(tmp_path, changing):
    model = module(**{name: make() for name, make in changing.items()})
    trainer(tmp_path, max_steps=5, callbacks=[TrainingObjective(2)]).fit(model, digits())
    records = RecordStore(tmp_path).read("objective")
    assert [record.step for record in records] == [0, 2, 4, 5]
    curve = "timestep_density" if "timesteps" in changing else "loss_weight"
    first, last = (record.curves[curve].value for record in (records[0], records[-1]))
    assert not np.allclose(first, last, rtol=1e-4)


class SteeredAt3(L.Callback):
    """Changes the density in the third step, once."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            levels = torch.tensor([-4.0, 0.0, 4.0])
            pl_module.timesteps.steer(levels, torch.tensor([1.0, 5.0, 1.0]), torch.ones(3))


@pytest.mark.parametrize("stopped_at", [2, 3, 5])
def test_a_resumed_run_finds_the_changes_of_its_objective_where_an_unbroken_one_does(tmp_path, stopped_at):
    def fit(folder, max_steps, **kwargs):
        fitted = trainer(folder, max_steps=max_steps, callbacks=[SteeredAt3(), TrainingObjective(2)])
        fitted.fit(module(timesteps=BalancedTimesteps()), digits(), **kwargs)
        return fitted

    fit(tmp_path / "whole", 8)
    fit(tmp_path / "parts", stopped_at).save_checkpoint(tmp_path / "stopped.ckpt")
    fit(tmp_path / "parts", 8, ckpt_path=str(tmp_path / "stopped.ckpt"))
    expected, found = (
        {record.step: record.curves for record in RecordStore(tmp_path / name).read("objective")}
        for name in ("whole", "parts")
    )
    assert set(expected) == {0, 4}
    assert set(found) == {0, 4} | ({3} if stopped_at == 3 else set())  # the end of the first part
    for step, curves in expected.items():
        for name, curve in curves.items():
            np.testing.assert_array_equal(found[step][name].value, curve.value)


def test_a_module_without_an_objective_is_told_what_to_give(tmp_path):
    model = module()
    del model.objective
    with refused(r"LatentDiffusion has none; give it `self\.objective = ldmprobe"):
        trainer(tmp_path, callbacks=[TrainingObjective()]).fit(model, digits())
