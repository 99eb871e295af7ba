"""Everything that can be added, added from outside the package at once (tests/own_parts.py): a noise process, a
prediction, a sampler, a guidance, a conditioning with a column of its own, a data source, a weighting, an analysis with
its Metric table. A YAML trains with them, and every command works."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ldmprobe import DDIM, LatentStatistics, RecordStore, Sampling, StepKL, load_model, probe_sampling
from ldmprobe.cli import main
from ldmprobe.comparison.compare import PAGE, TABLE
from tests.helpers import tiny_unet_settings
from tests.own_parts import AdamsBashforth, TwiceTheNoise, ramp
from tests.tracking.wandb_file import read_history

OWN, SAMPLED = "tests.own_parts.", "adams_bashforth"


def part(class_path, /, **arguments):
    return {"class_path": class_path, "init_args": arguments}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extension")
    degrees = np.random.default_rng(0).uniform(0, 360, 320).tolist()
    pictures = [Image.fromarray(np.uint8((ramp(math.radians(angle)) + 1) * 127.5)) for angle in degrees]
    (folder / "data").mkdir()
    Dataset.from_dict({"image": pictures, "degrees": degrees}).to_parquet(folder / "data" / "train.parquet")
    network = tiny_unet_settings(channels=1, in_channels=3)
    probes = [
        part(
            "DDIMProbe", every_n_steps=2, num_samples=16, num_steps=6, sampler=part(f"{OWN}AdamsBashforth"),
            guidance=part(f"{OWN}NoisyHalf"), analyses=[part(f"{OWN}Reach"), part("StepKL"), part("MarginalGap")],
        ),
        part("DenoisingProbe", every_n_steps=2, num_images=16, num_draws=32),
        part("ModelCheckpoint", every_n_train_steps=2, save_last=True),
        part("ModelCheckpoint", dirpath=str(folder / "best"), monitor=f"probe_{SAMPLED}/final_reach", every_n_train_steps=2),
    ]  # fmt: skip
    config = {
        "data": part("ImageData", dataset=str(folder / "data"), batch_size=16, columns=[part(f"{OWN}AngleColumn")]),
        "model": part(
            "LatentDiffusion", network=part("diffusers.UNet2DModel", **network), scheduler=part(f"{OWN}LinearLogSNR"),
            conditioning=part(f"{OWN}Direction", dropout=0.2), weighting=part(f"{OWN}Middle"), ema_decay=0.9,
        ),
        "trainer": {
            "max_steps": 4, "accelerator": "cpu", "val_check_interval": 4, "limit_val_batches": 1, "log_every_n_steps": 1,
            "enable_progress_bar": False, "enable_model_summary": False, "callbacks": probes,
            "logger": [part("ResumableCSVLogger"), part("TensorBoardLogger", name="tb"), part("WandbLogger", offline=True)],
        },
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def fit(folder, run, *arguments):
    assert main(["fit", "--config", str(folder / "config.yaml"), "--run_dir", str(folder / run), *arguments]) == 0
    return folder / run


@pytest.fixture(scope="module")
def run(folder):
    return fit(folder, "run")


def test_it_is_probed_and_says_with_what(run):
    assert [record.step for record in RecordStore(run).read("denoising")] == [0, 2, 4]
    first, *_, last = RecordStore(run).read(SAMPLED)
    assert last.provenance["sampler"] == AdamsBashforth.name
    assert "noisy half" in last.provenance["guidance"]
    assert np.isnan(last.curves["step_kl_ideal"].value).all()  # of unguided data alone
    assert not np.array_equal(first.curves["reach"].value, last.curves["reach"].value)


def test_without_guidance_its_ideal_is_its_own(run):
    model = load_model(str(run / "checkpoints" / "last.ckpt"), "cpu")
    sampling = Sampling(8, 6, AdamsBashforth())
    record = probe_sampling(model, LatentStatistics.load(run / "reference.safetensors"), sampling, analyses=[StepKL()])
    ideal = record.curves["step_kl_ideal"].value
    other = probe_sampling(
        model, LatentStatistics.load(run / "reference.safetensors"), Sampling(8, 6, DDIM()), analyses=[StepKL()]
    )
    assert np.isfinite(ideal).any()
    assert not np.allclose(ideal[2:], other.curves["step_kl_ideal"].value[2:], equal_nan=True)


def test_every_logger_has_it(run):
    (rows,), final = run.rglob("metrics.csv"), f"probe_{SAMPLED}/final_reach"
    last = RecordStore(run).read(SAMPLED)[-1].scalars["final_reach"]
    rows = pd.read_csv(rows)
    bands = {column for column in rows.columns if column.startswith(f"probe_{SAMPLED}/reach/logsnr")}
    assert len(bands) > 2
    assert rows[final].dropna().iloc[-1] == pytest.approx(last)
    (events,) = {path.parent for path in run.rglob("events.out.tfevents*")}
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert bands <= {*accumulator.Tags()["scalars"]}
    assert accumulator.Scalars(final)[-1].value == pytest.approx(last)
    assert {f"probe_{SAMPLED}/curves", f"probe_{SAMPLED}/heatmaps"} <= {*accumulator.Tags()["images"]}
    sent = {key: value for row in read_history(run) for key, value in row.items()}
    assert bands <= {*sent}
    assert sent[final] == pytest.approx(last)
    assert any("reach_curves_table" in key for key in sent)


def test_a_checkpoint_goes_by_it(folder, run):
    assert list((folder / "best").glob("*.ckpt"))


def test_it_is_read_from_its_checkpoint(run):
    model = load_model(str(run / "checkpoints" / "last.ckpt"), "cpu")
    assert isinstance(model.schedule.prediction, TwiceTheNoise)
    assert model.conditioning.for_samples(torch.zeros(1))["concat"].shape == (1, 2, 8, 8)


@pytest.fixture(scope="module")
def resumed(folder):
    fit(folder, "resumed", "--trainer.max_steps", "2", "--trainer.logger", "false")
    return fit(folder, "resumed", "--ckpt_path", "last", "--trainer.logger", "false")


def test_it_is_stopped_and_resumed(run, resumed):
    one, other = (torch.load(each / "checkpoints" / "last.ckpt", weights_only=False) for each in (run, resumed))
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    assert [record.step for record in RecordStore(resumed).read(SAMPLED)] == [0, 2, 4]


def test_it_is_reported_and_compared(folder, run, resumed):
    assert main(["report", str(run)]) == 0
    assert main(["compare", str(run), str(resumed), "--out", str(folder / "compared")]) == 0
    report, comparison = (page.read_text() for page in (run / "report.html", folder / "compared" / PAGE))
    for html in (report, comparison):
        assert "<h2>Reach of the latents</h2>" in html
        assert "How far &lt;they&gt; reach" in html
        assert "could not be drawn" not in html.lower()
    assert "<h2>Reach of the samples</h2>" in report
    assert {"reach", "final_reach"} <= {*pd.read_parquet(folder / "compared" / TABLE).metric}


def test_it_is_cached(folder, run):
    cache = folder / "cache"
    assert main(["cache", "--config", str(folder / "config.yaml"), "--out", str(cache)]) == 0
    shorter = ("--trainer.max_steps", "2", "--trainer.logger", "false")
    cached = fit(folder, "cached", "--data.init_args.latents", str(cache), *shorter)
    one, other = RecordStore(run).read(SAMPLED)[1], RecordStore(cached).read(SAMPLED)[-1]
    np.testing.assert_array_equal(one.curves["reach"].value, other.curves["reach"].value)


def test_another_data_source_takes_its_place(folder):
    other = fit(folder, "ramps", "--data", f"{OWN}Ramps", "--trainer.max_steps", "2", "--trainer.logger", "false")
    assert np.isfinite(RecordStore(other).read("denoising")[-1].curves["denoising_skill"].value).all()


@pytest.mark.usefixtures("forked_audit")
def test_it_is_audited(folder, capsys):
    assert main(["audit", "--config", str(folder / "config.yaml"), "--steps", "2", "--trainer.logger=false"]) == 0
    assert "Undisturbed" in capsys.readouterr().out
