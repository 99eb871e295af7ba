"""Training with probes is bit-identical to training without: the whole state after every batch, and around every hook
of a probe."""

import pytest

from ldmprobe.audit.ledger import KINDS
from tests.audit.audited_run import ALL_PROBES, audit_in_process, own, write_config
from tests.run_config import component

NORMED = {"model": {"network": own("NormedDenoiser")}}
SHAPED = {**NORMED["model"], "latent_shape": [2, 4, 4]}
BALANCER = component("TimestepBalancer", num_images=16, num_draws=32, hysteresis=0.0)
GRADIENT = component("GradientProbe", num_images=16, num_draws=16)
BALANCED = {"timesteps": {"class_path": "BalancedTimesteps"}}
QUALITY = component(
    "SampleQuality", feature_network=own("Convolutions"), num_samples=24, num_steps=2, num_real=30, kid_subset_size=10
)
CELLS = {
    "everything at once": {
        "callbacks": [*ALL_PROBES, GRADIENT, BALANCER, component("ReportWriter")],
        "model": BALANCED,
        "precision": "bf16-mixed",
        "logger": {"class_path": "lightning.pytorch.loggers.WandbLogger"},
    },
    "as most train": {"callbacks": [*ALL_PROBES, component("ReportWriter")]},
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
    "TensorBoard": {"logger": component("lightning.pytorch.loggers.TensorBoardLogger", save_dir=".")},
    "a balancer, which is part of training": {"callbacks": [*ALL_PROBES, BALANCER], "model": BALANCED},
    "sample quality": {"callbacks": [QUALITY]},
    "sample quality, loaders of one's own": {
        "callbacks": [QUALITY],
        "own_data": own("OwnData", num_workers=0),
        "model": {"latent_shape": [2, 4, 4]},
    },
    "in the middle of everything": {"callbacks": [own("AtEveryTurn")]},
    "in the middle of everything, live batch norm": {
        "callbacks": [own("AtEveryTurn")],
        "model": {"network": own("NormedDenoiser"), "ema_decay": None},
    },
}
LONG = (
    *("as most train", "bf16 autocast", "W&B", "a balancer, which is part of training"),  # one by one, as at once
    *("compiled", "bf16 weights", "TensorBoard", "no accumulation", "no moving average", "loaders of one's own"),
    *("two data-loader workers", "sample quality"),  # as with loaders of one's own
    *("batch norm in a network of one's own", "batch norm, no moving average"),  # as in the middle of everything
)


def _marked(cell):
    return pytest.param(cell, marks=[pytest.mark.reliability] * (cell in LONG))


@pytest.mark.parametrize("cell", [_marked(cell) for cell in CELLS])
def test_no_byte_differs(tmp_path, cell):
    probed, compared = audit_in_process(write_config(tmp_path / "run.yaml", **CELLS[cell]))
    assert probed.disturbances == []
    assert compared.first is None
    assert probed.failures == {}
    assert KINDS.keys() - compared.rows.keys() <= {"gradient scaler", "moving average", "buffers", "extra state"}
    listed = {callback["class_path"].rpartition(".")[2] for callback in CELLS[cell].get("callbacks", ALL_PROBES)}
    assert set(probed.probe_runs) == listed - {"TimestepBalancer"}
    assert all(count >= (1 if name == "ReportWriter" else 3) for name, count in probed.probe_runs.items())
    compared_bytes = sum(row.num_bytes for row in compared.rows.values())
    print(f"{cell}: {compared_bytes:,} bytes after each batch, {probed.bytes_bracketed:,} around probes: 0 differ")
