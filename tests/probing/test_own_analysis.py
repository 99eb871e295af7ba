"""An analysis from outside ldmprobe, with its Metric table: probed, logged, monitored, reported and compared, with no
file of ldmprobe edited."""

import re

import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ldmprobe
from ldmprobe.callbacks import DDIMProbe
from ldmprobe.comparison.compare import TABLE, write_comparison
from tests.tracking.wandb_file import read_history
from tests.training.test_latent_diffusion import digits, module, trainer

MEANING = "How far <the> samples reach; a perfect model's are of 1."


class Reach(ldmprobe.Analysis):
    """The root mean square of the latents after each step, and of the last."""

    metrics = (
        ldmprobe.Metric("reach", "Reach of the latents", MEANING, "root mean square", ideal=1.0, pool="mean", shown="headline"),
        ldmprobe.Metric("final_reach", "Reach of the samples", "After the last step.", "root mean square", shown="headline"),
    )  # fmt: skip

    def begin(self, trajectory):
        self.trajectory, self.values = trajectory, []

    def update(self, step):
        self.values.append(float(step.z_s.pow(2).mean().sqrt()))

    def finish(self):
        curve = self.trajectory.curve(np.array(self.values))
        return ldmprobe.Findings(scalars={"final_reach": self.values[-1]}, curves={"reach": curve})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("one", 0), ("other", 1)):
        run = folder / name
        logged = name == "one"
        loggers = [TensorBoardLogger(str(run), "tb", version=0), CSVLogger(str(run), "csv", version=0)]
        loggers = [WandbLogger(project="own", offline=True, save_dir=str(run)), *loggers] if logged else []
        best = ModelCheckpoint(run / "best", monitor="probe_ddim/final_reach", every_n_train_steps=1)
        trainer(
            run,
            max_steps=2,
            callbacks=[DDIMProbe(1, num_samples=16, num_steps=6, analyses=[Reach()]), best],
            logger=loggers,
            enable_checkpointing=True,
        ).fit(module(seed=seed), digits())
        if logged:
            loggers[0].experiment.finish()
    return folder


@pytest.fixture(scope="module")
def records(runs):
    return ldmprobe.RecordStore(runs / "one").read("ddim")


def test_it_is_in_the_record_with_its_meaning(records):
    assert [record.step for record in records] == [0, 1, 2]
    assert records[0].metric("reach") == Reach.metrics[0]


def test_every_logger_has_it(runs, records):
    bands = [name for name in ldmprobe.scalar_metrics(records[-1]) if name.startswith("probe_ddim/reach/logsnr")]
    assert len(bands) > 2
    last = records[-1].scalars["final_reach"]
    rows = pd.read_csv(runs / "one" / "csv" / "version_0" / "metrics.csv").set_index("step")
    assert rows["probe_ddim/final_reach"].dropna()[2] == pytest.approx(last)
    assert {*bands} <= {*rows.columns}
    events = EventAccumulator(str(runs / "one" / "tb" / "version_0"))
    events.Reload()
    assert events.Scalars("probe_ddim/final_reach")[-1].value == pytest.approx(last)
    assert {"probe_ddim/curves", "probe_ddim/heatmaps"} <= {*events.Tags()["images"]}
    wandb = {key: value for row in read_history(runs / "one") for key, value in row.items()}
    assert wandb["probe_ddim/final_reach"] == pytest.approx(last)
    assert {*bands} <= {*wandb}
    assert any("reach_curves_table" in key for key in wandb)


def test_a_checkpoint_goes_by_it(runs):
    assert list((runs / "one" / "best").glob("*.ckpt"))


def test_the_report_and_the_comparison_show_it(runs):
    report = ldmprobe.write_report(runs / "one").read_text()
    page = write_comparison([runs / "one", runs / "other"], runs / "out").read_text()
    for html in (report, page):
        assert "<h2>Reach of the latents</h2>" in html
        assert "How far &lt;the&gt; samples reach" in html
        assert "could not be drawn" not in html.lower()
    assert re.search(r"<span>Training steps</span><strong>2</strong>", report)
    assert "<h2>Reach of the samples</h2>" in report
    table = pd.read_parquet(runs / "out" / TABLE)
    assert {"reach", "final_reach"} <= {*table.metric}
