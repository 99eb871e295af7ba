"""Two processes (gloo, CPU): the same records as one, written once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ldmprobe.tracking.store import RecordStore

CONFIG = Path(__file__).resolve().parent.parent.parent / "configs" / "gaussian.yaml"


def fit(run_dir: Path, devices: int) -> None:
    arguments = {
        "--run_dir": run_dir,
        "--trainer.devices": devices,
        "--trainer.strategy": "ddp" if devices > 1 else "auto",
        "--trainer.accelerator": "cpu",
        "--trainer.max_steps": 4,
        "--trainer.callbacks.every_n_steps": 2,
        "--trainer.val_check_interval": 2,
        "--trainer.limit_val_batches": 1,
        "--data.init_args.dataset_kwargs": "{num_images: 300, channels: 2, size: 4}",
        "--data.init_args.batch_size": 8,
        "--model.init_args.network.init_args.sample_size": 4,
        "--model.init_args.network.init_args.in_channels": 2,
        "--model.init_args.network.init_args.out_channels": 2,
        "--model.init_args.network.init_args.block_out_channels": "[8, 16]",
        "--model.init_args.network.init_args.norm_num_groups": 4,
    }
    arguments.pop("--trainer.callbacks.every_n_steps")
    command = [sys.executable, "-m", "ldmprobe.cli", "fit", "--config", CONFIG]
    command += [part for pair in arguments.items() for part in pair]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_make_the_records_of_one(tmp_path):
    fit(tmp_path / "one", devices=1)
    fit(tmp_path / "two", devices=2)
    one, two = RecordStore(tmp_path / "one"), RecordStore(tmp_path / "two")
    assert [(r.probe, r.step) for r in one.read()] == [(r.probe, r.step) for r in two.read()]
    # Before the first step the weights are the same, so the records must be.
    for probe in ("ddim", "denoising"):
        first, second = one.read(probe)[0], two.read(probe)[0]
        assert first.fingerprints == second.fingerprints
        for name, curve in first.curves.items():
            np.testing.assert_allclose(second.curves[name].value, curve.value, rtol=1e-4, atol=1e-7, err_msg=name)
        for name, scatters in first.scatters.items():
            for mine, theirs in zip(scatters, second.scatters[name], strict=True):
                np.testing.assert_allclose(theirs.xy, mine.xy, rtol=1e-4, atol=1e-5)
        assert len(first.images) == len(second.images)
