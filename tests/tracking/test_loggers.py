"""What a new user's loggers are sent, read back from the files that they write."""

from pathlib import Path

import wandb
import yaml

import ldmprobe
from ldmprobe.cli import main
from scripts.metric_tables import OUT, metric_tables
from tests.run_config import unet
from tests.tracking.wandb_file import read_history

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "DDIMProbe": {"num_samples": 8, "num_steps": 20},
    "DenoisingProbe": {"num_images": 16, "num_draws": 32},
    "TrainingLoss": {},
}


def test_the_demos_wandb_run_has_few_scalars_in_sections(tmp_path):
    config = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text())
    config["model"]["init_args"]["network"] = unet(num_class_embeds=11)
    config["trainer"] |= {"max_steps": 4, "val_check_interval": 4, "limit_val_batches": 1, "log_every_n_steps": 1}
    for callback in config["trainer"]["callbacks"]:
        name = callback["class_path"].split(".")[-1]
        if name in SMALL:
            callback.setdefault("init_args", {}).update({"every_n_steps": 4, **SMALL[name]})
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(config))
    run = tmp_path / "run"
    assert main(["fit", "--config", str(tmp_path / "demo.yaml"), "--run_dir", str(run)]) == 0
    wandb.finish()
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
    assert sections == {
        "probe_ddim",
        "probe_denoising",
        "probe_objective",
        "probe_training",
        "train",
        "val",
        "epoch",
        "trainer",
        "verdict",
    }
    sent = {key for record in ldmprobe.RecordStore(run).read() for key in ldmprobe.scalar_metrics(record)}
    assert sent == {key for key in scalars if key.startswith("probe_")}


def test_the_document_of_metrics_says_what_the_tables_say():
    assert OUT.read_text(encoding="utf-8") == metric_tables()
