"""SampleQuality in training: when, where to, undisturbed, resumed, and what it refuses before the first step."""

import importlib.util
import logging
import math

import lightning as L
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from ldmprobe import RecordStore, Unconditional
from ldmprobe.callbacks import DDIMProbe, SampleQuality
from ldmprobe.probing.real_features import RealFeatures
from tests.audit.audited_run import Convolutions
from tests.helpers import refused, tiny_unet
from tests.training.test_latent_diffusion import digits, module, stopped, trainer

SMALL = {"num_samples": 24, "num_steps": 2, "num_real": 40, "kid_subset_size": 10, "batch_size": 16}


def quality(feature_network=None, **settings):
    network = Convolutions(1) if feature_network is None else feature_network
    return SampleQuality(network, **{"every_n_steps": 2, **SMALL, **settings})


def records(folder):
    return RecordStore(folder).read("quality")


def test_fid_and_kid_are_recorded_and_logged_over_training(tmp_path):
    logger = CSVLogger(str(tmp_path), name="csv")
    trainer(tmp_path, max_steps=5, logger=logger, log_every_n_steps=1, callbacks=[quality()]).fit(module(), digits())
    found = records(tmp_path)
    assert [record.step for record in found] == [0, 2, 4, 5]
    assert all(math.isfinite(value) for record in found for value in record.scalars.values())
    assert len({record.scalars["fid"] for record in found}) == 4
    assert all(record.fingerprints == found[0].fingerprints for record in found)
    assert found[0].provenance["weights"] == "ema"
    table = pd.read_csv(next((tmp_path / "csv").rglob("metrics.csv")))
    for name in ("fid", "kid", "kid_std"):
        logged = table.dropna(subset=f"probe_quality/{name}").set_index("step")[f"probe_quality/{name}"]
        assert logged.to_dict() == pytest.approx({record.step: record.scalars[name] for record in found})


def test_a_resumed_run_finds_the_same_and_reads_its_real_images_once(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer(whole, max_steps=4, callbacks=[quality()]).fit(module(), digits())
    two = stopped(parts, 2, callbacks=[quality()])
    monkeypatch.setattr(RealFeatures, "of", None)
    trainer(parts, max_steps=4, callbacks=[quality()]).fit(module(), digits(), ckpt_path=two)
    expected, found = records(whole), records(parts)
    assert [record.step for record in found] == [0, 2, 4]
    assert [record.scalars for record in found] == [record.scalars for record in expected]
    assert [record.fingerprints for record in found] == [record.fingerprints for record in expected]


class Pixels(nn.Flatten):
    num_features = 64


@pytest.mark.parametrize("changed", [{"num_real": 30}, {"real": "held_out"}, {"feature_network": Pixels()}])
def test_real_images_of_another_choice_are_not_taken_for_these(tmp_path, changed):
    one = stopped(tmp_path, 1, callbacks=[quality()])
    trainer(tmp_path, max_steps=2, callbacks=[quality(**changed)]).fit(module(), digits(), ckpt_path=one)
    before, after = records(tmp_path)[0].fingerprints, records(tmp_path)[-1].fingerprints
    part = "features" if "feature_network" in changed else "real_images"
    assert {name for name in before if before[name] != after[name]} == {part}


def loader(brightness, num_rows=80):
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(num_rows, 1, 8, 8, generator=generator) - 1) * brightness
    rows = [{"image": image, "label": 0} for image in images]
    return DataLoader(rows, batch_size=16, shuffle=True, generator=generator)


@pytest.mark.parametrize(("changed", "kept"), [((1.0,), True), ((0.5,), False), ((1.0, 96), False)])
def test_real_images_of_loaders_are_kept_as_long_as_their_data_are_the_same(tmp_path, monkeypatch, changed, kept):
    """However often the generator that shuffles them has been drawn from when the run was stopped."""
    one = stopped(tmp_path, 1, data=loader(1.0), callbacks=[quality()])
    before = (tmp_path / "real_features.safetensors").read_bytes()
    computed, of = [], RealFeatures.of
    monkeypatch.setattr(RealFeatures, "of", lambda *args: computed.append(of(*args)) or computed[-1])
    trainer(tmp_path, max_steps=2, callbacks=[quality()]).fit(module(), loader(*changed), ckpt_path=one)
    steps = [record.fingerprints["real_images"] for record in records(tmp_path)]
    assert [steps[-1]] == ([steps[0]] if kept else [each.images for each in computed])
    assert (steps[0] == steps[-1]) == kept
    aside = [path.read_bytes() for path in tmp_path.glob("superseded/*.safetensors")]
    assert aside == ([] if kept else [before])


def test_real_images_are_those_of_the_split_that_is_named(tmp_path):
    data = digits()
    for real in ("train", "held_out"):
        trainer(tmp_path / real, max_steps=1, callbacks=[quality(real=real)]).fit(module(), data)
        images = [batch["image"] for batch in data.reference_batches(40, held_out=real == "held_out")]
        expected = RealFeatures.of(Convolutions(1), images, torch.device("cpu"))
        assert records(tmp_path / real)[-1].fingerprints["real_images"] == expected.images


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: quality(num_samples=1), "num_samples is 1; expected at least 2"),
        (lambda: quality(kid_subset_size=25), "kid_subset_size is 25, more than num_samples, 24"),
        (lambda: quality(num_real=9), "num_real 9; expected at least kid_subset_size, 10"),
        (lambda: quality(real="test"), "real 'test'; expected 'train' or 'held_out'"),
        (lambda: quality(every_n_steps=0), "every_n_steps 0; expected at least 1"),
    ],
)
def test_impossible_settings_are_refused_at_construction(build, message):
    with refused(message):
        build()


class NoStep(L.Callback):
    def on_train_batch_start(self, *_):
        raise AssertionError("must not be reached")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 1001}, "num_steps is 1001; expected 1 to 1000"),
        ({"feature_network": Convolutions(3)}, r"Convolutions cannot take the model's images of shape \(1, 8, 8\)"),
        ({"feature_network": "builtin:cats"}, "builtin:cats"),
        ({"num_real": 5000, "num_samples": 3000, "kid_subset_size": 3000}, "but there are 1617 real images"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(tmp_path, settings, message):
    with refused(message):
        trainer(tmp_path, callbacks=[quality(**settings), NoStep()]).fit(module(), digits())


@pytest.mark.parametrize("callback", [quality, DDIMProbe])
def test_guidance_without_a_condition_is_refused_before_training(tmp_path, callback):
    model = module(conditioning=Unconditional())
    model.network = tiny_unet(channels=1)
    with refused(r"guidance scale is 3, but the model has no condition to guide by"):
        trainer(tmp_path, callbacks=[callback(guidance=3.0), NoStep()]).fit(model, digits())


def test_too_few_samples_for_a_covariance_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, max_steps=1, callbacks=[quality(num_samples=6, kid_subset_size=4)]).fit(module(), digits())
    assert "6 samples for 6 features: too few for FID's covariance" in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_inception_without_torch_fidelity_says_what_to_install(tmp_path):
    with refused(r"Inception needs torch_fidelity, .*`pip install 'ldmprobe\[fid\]'`"):
        trainer(tmp_path, callbacks=[quality("inception"), NoStep()]).fit(module(), digits())
