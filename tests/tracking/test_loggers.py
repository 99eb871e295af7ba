"""What a new user's loggers are sent, read back from the files that they write."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger

import ldmprobe
from ldmprobe.cli import main
from ldmprobe.probing.verdict import State
from ldmprobe.tracking.history import RunningHistory
from ldmprobe.tracking.loggers import log_record, log_verdict
from ldmprobe.tracking.run_verdict import verdict_on
from metric_tables import OUT, metric_tables
from tests.run_config import unet
from tests.tracking.wandb_file import read_history, read_records, read_summary

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "DDIMProbe": {"num_samples": 8, "num_steps": 20, "num_reference": 256},
    "DenoisingProbe": {"num_images": 16, "num_draws": 32, "num_reference": 256},
    "TrainingLoss": {},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The demo with a network and probes that are small, after its probes at steps 0 and 4."""
    folder = tmp_path_factory.mktemp("demo")
    config = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text())
    config["model"]["init_args"]["network"] = unet(num_class_embeds=11)
    config["trainer"] |= {"max_steps": 4, "val_check_interval": 4, "limit_val_batches": 1, "log_every_n_steps": 1}
    for callback in config["trainer"]["callbacks"]:
        name = callback["class_path"].split(".")[-1]
        if name in SMALL:
            callback.setdefault("init_args", {}).update({"every_n_steps": 4, **SMALL[name]})
    (folder / "demo.yaml").write_text(yaml.safe_dump(config))
    run = folder / "run"
    assert main(["fit", "--config", str(folder / "demo.yaml"), "--run_dir", str(run)]) == 0
    for state in (State.AT_FAULT, State.AT_FAULT, State.LEARNING, State.OVERFITTING):
        log_verdict([WandbLogger(experiment=wandb.run)], replace(verdict_on(run), state=state), 4)
    wandb.finish()
    return run


def test_the_demos_wandb_run_has_few_scalars_in_sections(run):
    rows = read_history(run)
    nested = {key.partition(".")[0] for row in rows for key in row if "." in key}  # media and tables
    scalars = {
        key
        for row in rows
        for key, value in row.items()
        if isinstance(value, int | float) and not key.startswith("_") and key.partition(".")[0] not in nested
    }
    assert len(scalars) <= 60
    sections = {key.partition("/")[0] for key in scalars}
    probes = {f"probe_{name}" for name in ("ddim", "denoising", "objective", "training")}
    assert sections == probes | {"train", "val", "epoch", "trainer", "verdict"}
    sent = {key for record in ldmprobe.RecordStore(run).read() for key in ldmprobe.scalar_metrics(record)}
    assert sent == {key for key in scalars if key.startswith("probe_")}


def test_wandb_summarizes_the_best_and_the_last_of_what_has_a_better_end(run):
    first, last = ldmprobe.RecordStore(run).read("denoising")
    rows, summary = read_history(run), read_summary(run)
    for name, best in (("bound_nats", min), ("lowest_skill", max)):
        values = [record.scalars[f"denoising_{name}"] for record in (first, last)]
        assert summary[f"probe_denoising/{name}"] == {"last": values[1], best.__name__: best(values)}
    assert {*summary["probe_denoising/skill/logsnr-06"]} == {"max", "last"}
    assert isinstance(summary["probe_objective/timestep_mean_log_snr"], float)  # neither end is better
    assert {*summary["verdict/recoverable_nats"]} == {"min", "last"}
    assert {row["trainer/global_step"] for row in rows if "probe_denoising/bound_nats" in row} == {0, 4}


class OwnLogger(WandbLogger):
    """A user's own, which is sent what its base is."""


def test_numbers_and_media_are_sent_under_the_step_that_loggers_are_told(run, tmp_path):
    store, logger = ldmprobe.RecordStore(run), OwnLogger(offline=True, save_dir=tmp_path)
    log_record([logger], store.read("denoising")[-1], RunningHistory(store), step=2)
    logger.experiment.finish()
    numbers, media = read_history(tmp_path)
    assert ("probe_denoising/bound_nats" in numbers, "probe_denoising/bound_nats" in media) == (True, False)
    assert numbers["trainer/global_step"] == media["trainer/global_step"] == 2


def test_wandb_is_sent_the_report_once_and_an_alert_for_each_state_that_is_new_and_grave(run):
    rows = read_history(run)
    (page,) = (run / "wandb").glob("offline-run-*/files/media/html/report*.html")
    assert page.read_text() == (run / "report.html").read_text()
    assert [row["trainer/global_step"] for row in rows if row.get("report._type") == "html-file"] == [4]
    alerts = [record.alert.title for record in read_records(run) if record.HasField("alert")]
    assert alerts == ["at fault", "overfitting"]
    assert read_summary(run)["verdict/state"] == "overfitting"


def test_a_workspace_has_what_the_run_has_sent_in_sections(run, capsys):
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    assert main(["workspace", str(run), "--entity", "me", "--project", "digits"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert (view["entity"], view["project"]) == ("me", "digits")
    view["spec"] = workspaces.internal.WorkspaceViewspec.model_validate(view["spec"])
    workspace = workspaces.Workspace._from_model(workspaces.internal.View.model_validate(view))
    sections = {section.name: section.panels for section in workspace.sections}
    assert [*sections] == ["Verdict", "Over training", "By noise level", "Pictures"]
    rows = read_history(run)
    sent = {key for row in rows for key in row}
    plots = [panel for panels in sections.values() for panel in panels if hasattr(panel, "y")]
    shown = {metric.name for plot in plots for metric in plot.y}
    assert shown == {key for key in sent if key.startswith(("probe_", "verdict/")) and "." not in key}
    assert {plot.x.name for plot in plots} == {"trainer/global_step"}
    pictures = {name for panel in sections["Pictures"] for name in panel.media_keys}
    assert pictures == {
        key.removesuffix("._type") for row in rows for key, value in row.items() if value == "image-file"
    }


def test_the_document_of_metrics_says_what_the_tables_say():
    assert OUT.read_text(encoding="utf-8") == metric_tables()
