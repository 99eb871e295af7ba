"""NaN and Inf in training: named by step, tensor, band and row, and stopped, skipped or counted."""

import copy
import re
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from ldmprobe import LatentCodec, LatentDiffusion
from ldmprobe.callbacks import NonFinite
from ldmprobe.probing.non_finite import all_finite
from tests.helpers import refused, tiny_unet
from tests.processes import finish, start_ranks
from tests.training.test_latent_diffusion import digits, module, trainer


class Plant(L.Callback):
    """A fault in one training batch: ``into`` is called with the module; what it returns is undone after the batch.
    Keeps the weights and the optimizer's state from before and after that batch."""

    def __init__(self, batch_idx, into):
        self.batch_idx, self.into, self.handle = batch_idx, into, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch_idx:
            self.before = _state(trainer, pl_module)
            self.handle = self.into(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.batch_idx:
            self.after, self.outputs = _state(trainer, pl_module), outputs
            if self.handle is not None:
                self.handle.remove()


def _state(trainer, pl_module):
    weights = {name: p.detach().clone() for name, p in pl_module.network.named_parameters()}
    return weights, copy.deepcopy(trainer.optimizers[0].state_dict())


def _same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def _overflow_at_high_noise(pl_module):
    """Predictions overflow where t > 700, as half-precision ones do first at some levels."""

    def hook(network, args, kwargs, output):
        t = args[1] if len(args) > 1 else kwargs["timestep"]
        return type(output)(sample=torch.where((t > 700).view(-1, 1, 1, 1), output.sample * 1e38 * 1e38, output.sample))

    return pl_module.network.register_forward_hook(hook, with_kwargs=True)


def _gradient_of_conv_out(pl_module):
    return pl_module.network.conv_out.weight.register_hook(lambda gradient: gradient / 0)


def _nan_in_conv_in(pl_module):
    with torch.no_grad():
        pl_module.network.conv_in.weight[0, 0, 0, 0] = torch.nan


def test_a_loss_that_overflows_is_named_by_step_band_and_stops_before_the_weights_are_spoilt(tmp_path):
    plant, model = Plant(3, _overflow_at_high_noise), module()
    with refused(r"NaN or Inf at optimizer step 3, in the loss") as caught:
        trainer(tmp_path, callbacks=[plant, NonFinite()]).fit(model, digits())
    _same(plant.after, plant.before)
    log_snr = plant.outputs["log_snr"][~plant.outputs["epsilon_mse"].isfinite()]
    count, bands = re.search(r"\((\d+) of 16 samples, at log-SNR (.*?)\)", str(caught.value)).groups()
    assert int(count) == len(log_snr) > 0
    ends = [[float(end.replace("−", "-")) for end in band.split("…")] for band in bands.split(", ")]
    for value in log_snr.tolist():
        assert any(band[0] - 0.05 <= value <= band[-1] + 0.05 for band in ends)  # as rounded
    assert max(map(max, ends)) < -1  # t > 700 is below log-SNR −1


@pytest.mark.parametrize(
    ("fault", "policy", "message"),
    [
        (_gradient_of_conv_out, "stop", r"at optimizer step 2, in the gradient of network\.conv_out\.weight"),
        (_nan_in_conv_in, "stop", r"step 2, in parameter network\.conv_in\.weight \(16 of 16 samples"),
        (_nan_in_conv_in, "skip", "No step can be taken with such weights; resume from an earlier"),
    ],
)
def test_parameters_and_gradients_are_named(tmp_path, fault, policy, message):
    with refused(message):
        trainer(tmp_path, callbacks=[Plant(2, fault), NonFinite(policy)]).fit(module(), digits())


def test_a_skipped_step_leaves_weights_and_moments_and_training_goes_on(tmp_path, caplog):
    plant, model, logger = Plant(2, _overflow_at_high_noise), module(), CSVLogger(str(tmp_path), name="csv")
    fit = trainer(tmp_path, callbacks=[plant, NonFinite("skip")], logger=logger, log_every_n_steps=1)
    fit.fit(model, digits())
    _same(plant.after, plant.before)
    assert fit.global_step == 6
    assert all(p.isfinite().all() for p in model.parameters())
    assert not torch.equal(model.network.conv_in.weight, plant.after[0]["conv_in.weight"])  # later steps were taken
    assert "The step was left out" in caplog.text
    assert "1 optimizer steps of this run had NaN or Inf in them and were left out" in caplog.text
    assert "non_finite_steps" in Path(logger.log_dir, "metrics.csv").read_text()


def test_nothing_is_left_out_of_a_sound_run(tmp_path):
    plain, watched = module(), module()
    trainer(tmp_path / "plain", gradient_clip_val=1.0).fit(plain, digits())
    trainer(tmp_path / "watched", gradient_clip_val=1.0, callbacks=[NonFinite("skip")]).fit(watched, digits())
    _same(plain.state_dict(), watched.state_dict())


def test_a_warning_is_given_once_and_the_steps_counted(tmp_path, caplog):
    watch = NonFinite("warn")
    model = module()
    trainer(tmp_path, callbacks=[Plant(2, _nan_in_conv_in), watch]).fit(model, digits())
    assert watch.steps == 4  # steps 2 to 5: nothing repairs the weights
    told = [record.getMessage() for record in caplog.records if "There is NaN or Inf" in record.getMessage()]
    assert len(told) == 1
    assert "The step was taken all the same" in told[0]


@pytest.mark.parametrize(
    ("value", "place", "row", "accumulate"),
    [
        *((torch.nan, "images", 5, accumulate) for accumulate in (1, 2)),
        *((1e38, "latents", 5, accumulate) for accumulate in (1, 2)),
        (torch.inf, "images", 1, 2),  # in the first of two batches
    ],
)
def test_images_and_latents_are_named_by_row(tmp_path, value, place, row, accumulate):
    # 1e38 is finite; its square, in the autoencoder's normalization, is not.
    rows = [{"image": -torch.ones(1, 16, 16), "index": i} for i in range(16)]
    rows[row]["image"] = torch.full((1, 16, 16), value)
    codec = LatentCodec("builtin:digits")
    model = LatentDiffusion(tiny_unet(channels=2, size=4), codec=codec, latent_shape=(2, 4, 4), ema_decay=None)
    fit = trainer(tmp_path, accumulate_grad_batches=accumulate, callbacks=[NonFinite()])
    with refused(rf"optimizer step {row // 4 // accumulate}, in the {place} of row {row} \(1 of 4 samples"):
        fit.fit(model, DataLoader(rows, batch_size=4))


def test_any_other_module_is_watched_too(tmp_path):
    class Regression(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, batch_idx):
            return (batch - self.weight).sqrt().mean()  # of zero, whose gradient is infinite

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Regression()
    with refused("optimizer step 1, in the gradient of weight"):
        trainer(tmp_path, callbacks=[NonFinite()]).fit(model, DataLoader(torch.tensor([[1.0], [0.05]])))
    assert bool(model.weight.isfinite())


def test_a_large_gradient_is_finite():
    assert all_finite([torch.full((1000,), 1e38), torch.zeros(3, dtype=torch.float64)])
    assert not all_finite([torch.zeros(3), torch.tensor([0.0, torch.nan])])
    assert not all_finite([torch.zeros(3), torch.tensor([0.0, -torch.inf])])
    assert all_finite([])


def test_an_unknown_policy_is_refused():
    with refused("policy 'ignore'; expected one of stop, skip, warn"):
        NonFinite("ignore")


def _lost_on_the_second_rank(folder):
    plant = Plant(2, lambda module: _overflow_at_high_noise(module) if module.global_rank == 1 else None)
    watch, model = NonFinite("skip"), module()
    fit = trainer(folder, max_steps=4, devices=2, strategy="ddp", callbacks=[plant, watch])
    fit.fit(model, digits())
    torch.testing.assert_close(plant.after, plant.before, rtol=0, atol=0)
    weights = torch.cat([p.detach().flatten() for p in model.network.parameters()])
    both = fit.strategy.all_gather(weights)
    assert torch.equal(both[0], both[1])
    assert both.isfinite().all()
    (folder / f"rank{fit.global_rank}").write_text(f"{watch.steps} of {fit.global_step}")


def test_all_processes_leave_out_a_step_that_is_lost_on_one(tmp_path):
    output = tmp_path / "output.txt"
    assert finish(*start_ranks(2, _lost_on_the_second_rank, tmp_path, output=output)) == [0, 0], output.read_text()
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["1 of 4", "1 of 4"]


def test_asked_every_few_steps_it_still_names_the_step(tmp_path):
    plant = Plant(3, _nan_in_conv_in)
    with refused(r"at optimizer step 3, in parameter .*conv_in.weight"):
        trainer(tmp_path, max_steps=12, callbacks=[plant, NonFinite(every_n_steps=5)]).fit(module(), digits())
    with refused(r"step 3, in parameter"):  # the end comes before the fifth step
        trainer(tmp_path / "b", max_steps=4, callbacks=[plant, NonFinite(every_n_steps=5)]).fit(module(), digits())
    with refused("every_n_steps: 1"):
        NonFinite("skip", every_n_steps=2)
