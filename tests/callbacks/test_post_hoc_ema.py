"""Averages made after training against those that were kept: the same to a thousandth, whenever training is stopped."""

import shutil
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from ldmprobe.callbacks import PostHocEMA
from ldmprobe.cli import main
from ldmprobe.features.classifier import FeatureNetwork
from ldmprobe.inference import real_latents, sample_images
from ldmprobe.io.store import RecordStore
from ldmprobe.models.diffusion_model import trained_network_of
from ldmprobe.pretrained.source import Source
from ldmprobe.probing.averages import BEST, FOR_BOUND
from ldmprobe.probing.paired_distance import above, distances, near_lowest
from ldmprobe.probing.real_features import RealFeatures
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model
from ldmprobe.training.ema_snapshots import EMASnapshots, averaged_weights
from ldmprobe.training.power_ema import PowerEMA
from tests.helpers import refused
from tests.training.test_latent_diffusion import assert_same_state, digits, module, trainer

DIRECT = (0.04, 0.07, 0.15, 0.2)


class Directly(L.Callback):
    """Averages of other lengths, kept as they are."""

    def on_train_start(self, trainer, pl_module):
        self.averages, self.at = PowerEMA(trained_network_of(pl_module), DIRECT), {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.averages.update(trained_network_of(pl_module))
        self.at[trainer.global_step] = {
            length: {name: value.clone() for name, value in weights.items()}
            for length, weights in self.averages.weights.items()
        }


def callbacks(folder):
    saving = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=12, save_top_k=-1)
    return [PostHocEMA(every_n_steps=1, max_snapshots=32), saving]


def fit(folder, *more, ckpt_path=None, max_steps=36):
    model = module(ema_decay=None)
    with_checkpoints = {"enable_checkpointing": True, "callbacks": [*callbacks(folder), *more], "max_steps": max_steps}
    trainer(folder, **with_checkpoints).fit(model, digits(), ckpt_path=ckpt_path)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 36 steps, its model, and averages that were kept beside."""
    folder, directly = tmp_path_factory.mktemp("run"), Directly()
    return folder, fit(folder, directly), directly.at


def checkpoint(folder, step):
    return folder / "checkpoints" / f"step={step}.ckpt"


@pytest.mark.parametrize("step", [24, 36])
def test_an_average_made_afterwards_is_the_one_that_was_kept(run, step):
    folder, _, kept = run
    for length in DIRECT:
        made = averaged_weights(checkpoint(folder, step), length)
        ours, theirs = (torch.cat([each[name].flatten() for name in made]) for each in (made, kept[step][length]))
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-3
    assert list(EMASnapshots(folder).paths()) == list(range(2, 37, 2))  # every second one of 36 has been removed


def test_a_run_that_goes_on_has_the_snapshots_of_one_that_was_never_stopped(run, tmp_path):
    whole, model, _ = run
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)  # of a run that got to 36 and is set back to 24
    for updates, path in EMASnapshots(tmp_path).paths().items():
        path.write_bytes(path.read_bytes() if updates <= 24 else b"of another branch")
    assert_same_state(fit(tmp_path, ckpt_path=str(checkpoint(tmp_path, 24))).state_dict(), model.state_dict())
    ours, theirs = (EMASnapshots(folder).paths() for folder in (tmp_path, whole))
    assert [path.read_bytes() for path in ours.values()] == [path.read_bytes() for path in theirs.values()]
    content = [torch.load(checkpoint(folder, 36), weights_only=True)["callbacks"] for folder in (tmp_path, whole)]
    averages = [each["ldmprobe.PostHocEMA"]["weights"]["0.05"] for each in content]
    assert_same_state(*averages)


def test_training_is_the_same_without_it(run, tmp_path):
    model = module(ema_decay=None)
    trainer(tmp_path, max_steps=12).fit(model, digits())
    assert_same_state(model.state_dict(), torch.load(checkpoint(run[0], 12), weights_only=True)["state_dict"])


def test_several_lengths_are_compared_and_the_best_is_probed(run, tmp_path, capsys):
    last, out = str(checkpoint(run[0], 36)), tmp_path / "probed"
    data = ["--data", "builtin:digits", "--label-column", "label", "--num-reference", "64", "--num-draws", "32"]
    few = ["--num-samples", "8", "--num-steps", "2", "--out", str(out)]
    assert main(["probe", last, *data, *few, "--ema-length", "0.05", "0.2"]) == 0
    (record,) = RecordStore(out).read("averages")
    best = record.scalars[BEST]
    probed = RecordStore(out).read("denoising")[0]
    said = capsys.readouterr().out
    assert f"the one of length {best:g} is best for samples" in said
    assert f"The lowest bound is that of length {record.scalars[FOR_BOUND]:g}." in said
    assert probed.provenance["weights"] == f"power-function average of length {best:g}"
    # The same draws: the gain at each level is the difference of the bounds of two whole probes.
    curve = record.curves["averages_bound_gain"].value
    assert curve.argmax() == [0.05, 0.2].index(record.scalars[FOR_BOUND])
    by_level = [record.curves[f"averages_nats/{length:g}"] for length in (0.05, 0.2)]
    seen = [(gained.value / (1 + np.exp(gained.log_snr))).sum() for gained in by_level]  # σ² = sigmoid(−λ)
    assert np.argmax(seen) == [0.05, 0.2].index(best)
    in_all = [record.curves[f"averages_nats/{length:g}"].value.sum() for length in (0.05, 0.2)]
    assert curve == pytest.approx(in_all)
    averaged = load_model(Source(last, ema_length=0.2)).network.state_dict()
    assert_same_state(averaged, averaged | averaged_weights(last, 0.2))


def test_with_a_feature_network_errors_choose_among_averages_within_one_standard_error_of_the_lowest_fid(
    run, tmp_path, capsys
):
    last, out, judge = str(checkpoint(run[0], 36)), tmp_path / "probed", FeatureNetwork("builtin:digits")
    data = ["--data", "builtin:digits", "--label-column", "label", "--num-reference", "64", "--num-draws", "32"]
    few = ["--num-samples", "32", "--num-steps", "2", "--out", str(out), "--feature-network", "builtin:digits"]
    lengths = (0.05, 0.1, 0.2)
    assert main(["probe", last, *data, *few, "--ema-length", *map(str, lengths)]) == 0
    (record,) = RecordStore(out).read("averages")
    images = real_latents(
        load_model(last), "builtin:digits", label_column="label", num_reference=64
    ).data.reference_images(64, held_out=False)
    real = RealFeatures.of(judge, (batch["image"] for batch in images), torch.device("cpu")).features
    expected = []
    for length in lengths:
        samples = sample_images(load_model(Source(last, ema_length=length)), Sampling(32, 2))
        with torch.no_grad():
            expected.append(distances(real, judge(samples.clamp(-1, 1))))
    fids = [float(each[0]) for each in expected]
    assert record.curves["averages_fid"].value == pytest.approx(fids, rel=1e-4)
    lowest = expected[np.argmin(fids)]
    kept = [length for length, each in zip(lengths, expected, strict=True) if above(each, lowest) <= 1]
    seen = {}
    for length in kept:
        gained = record.curves[f"averages_nats/{length:g}"]
        seen[length] = (gained.value / (1 + np.exp(gained.log_snr))).sum()
    best = max(seen, key=seen.__getitem__)
    assert record.scalars[BEST] == best
    fid = fids[lengths.index(best)]
    assert f"the one of length {best:g} is best for samples: its FID, {fid:.3g}, " in capsys.readouterr().out
    assert "FID of each average" in (out / "report.html").read_text()


def test_within_one_standard_error_of_the_lowest_is_by_the_paired_difference():
    noise = torch.randn(17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lowest = 5 + noise / 10
    error = 0.1  # of the difference: the standard deviation of its 16 replicates times √15
    own = torch.linspace(-1, 1, 16, dtype=torch.float64)
    own = error * own / own.std(correction=0) / 15**0.5

    def other(by):
        return lowest + by + torch.cat([torch.zeros(1, dtype=torch.float64), own])

    assert above(other(0.09), lowest) == pytest.approx(0.9)
    nan = torch.full_like(lowest, torch.nan)
    assert near_lowest([nan, other(0.09), lowest, other(0.11), lowest.clone()]) == (2, [1, 2, 4])


def test_what_cannot_be_averaged_is_refused_before_training(run, tmp_path):
    last = checkpoint(run[0], 36)
    content = torch.load(last, weights_only=True)
    alone = tmp_path / "alone.ckpt"
    torch.save(content, alone)
    with refused(r"0.2 cannot be made of those of .*alone.ckpt and the 0 snapshots"):
        load_model(Source(str(alone), ema_length=0.2))
    del content["callbacks"]["ldmprobe.PostHocEMA"]
    torch.save(content, alone)
    with refused("was trained without averages"):
        load_model(Source(str(alone), ema_length=0.05))
    with refused("cannot begin in the middle of training"):
        fit(tmp_path, ckpt_path=str(alone), max_steps=40)
    with refused("of length 0.05, 0.1 and this configuration of 0.08"):
        PowerEMA(module().network, [0.08]).load_state_dict({"updates": 3, "weights": {"0.05": {}, "0.1": {}}})
    with refused("expected some, each once"):
        PostHocEMA([0.05, 0.05])
    with refused("PostHocEMA needs parameters that ModelParallelStrategy does not shard"):
        strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
        PostHocEMA().on_fit_start(SimpleNamespace(strategy=strategy), module())
    probed = load_model(last)
    probed.network.requires_grad_(False)  # as an average is
    with refused("give it a property `trained_network` that returns the network in training"):
        trained_network_of(SimpleNamespace(diffusion_model=lambda: probed))
