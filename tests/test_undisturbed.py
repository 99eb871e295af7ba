"""Training with probes is bit-identical to training without: the whole state after every batch, and around every hook of a probe."""

import pytest

from ldmprobe.audit.ledger import KINDS
from tests.audit.audited_run import ALL_PROBES, audit_in_process, own, write_config

NORMED = {"model": {"network": own("NormedDenoiser")}}
SHAPED = {**NORMED["model"], "latent_shape": [2, 4, 4]}
BALANCER = {
    "class_path": "ldmprobe.callbacks.TimestepBalancer",
    "init_args": {"num_images": 16, "num_draws": 32, "hysteresis": 0.0},
}
BALANCED = {"timesteps": {"class_path": "ldmprobe.BalancedTimesteps"}}
CELLS = {
    "as most train": {},
    "no accumulation": {"accumulate_grad_batches": 1},
    "no moving average": {"model": {"ema_decay": None}},
    "bf16 autocast": {"precision": "bf16-mixed"},
    "bf16 weights": {"precision": "bf16-true"},
    "two data-loader workers": {"data": {"num_workers": 2}},
    "loaders of one's own": {"own_data": own("OwnData", num_workers=0), "model": SHAPED},
    "loaders of one's own, with workers that stay": {"own_data": own("OwnData", num_workers=1), "model": SHAPED},
    "batch norm in a network of one's own": NORMED,
    "batch norm, no moving average": {"model": {"network": own("NormedDenoiser"), "ema_decay": None}},
    "compiled": {"model": {"network": own("NormedDenoiser"), "ema_decay": None, "compile": True}},
    "W&B": {"logger": {"class_path": "lightning.pytorch.loggers.WandbLogger"}},
    "TensorBoard": {
        "logger": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "."}}
    },
    "a balancer, which is part of training": {"callbacks": [*ALL_PROBES, BALANCER], "model": BALANCED},
    "in the middle of everything": {"callbacks": [own("AtEveryTurn")]},
    "in the middle of everything, live batch norm": {
        "callbacks": [own("AtEveryTurn")],
        "model": {"network": own("NormedDenoiser"), "ema_decay": None},
    },
}
QUICK = ("as most train", "loaders of one's own", "in the middle of everything, live batch norm")
LONG = ("compiled", "bf16 weights", "TensorBoard", "no accumulation")


def _marked(cell):
    marks = () if cell in QUICK else pytest.mark.reliability if cell in LONG else pytest.mark.slow
    return pytest.param(cell, marks=marks)


@pytest.mark.parametrize("cell", [_marked(cell) for cell in CELLS])
def test_no_byte_differs(tmp_path, cell):
    probed, compared = audit_in_process(write_config(tmp_path / "run.yaml", **CELLS[cell]))
    assert probed.disturbances == []
    assert compared.first is None
    assert probed.failures == {}
    assert KINDS.keys() - compared.rows.keys() <= {"gradient scaler", "moving average", "buffers", "extra state"}
    names = set(probed.probe_runs)
    assert names == (
        {"AtEveryTurn"}
        if "in the middle" in cell
        else {"DDIMProbe", "DenoisingProbe", "TrainingLoss", "TrainingObjective", "ReportWriter"}
    )
    assert all(count >= (1 if name == "ReportWriter" else 3) for name, count in probed.probe_runs.items())
    compared_bytes = sum(row.num_bytes for row in compared.rows.values())
    print(f"{cell}: {compared_bytes:,} bytes after each batch, {probed.bytes_bracketed:,} around probes: 0 differ")
