"""Stopped and gone on with: as if nothing had happened."""

import os
import resource
import shutil
import signal
import time
import zipfile

import numpy as np
import pytest
import torch

from ldmprobe.callbacks import DDIMProbe, SampleQuality, TrainingObjective
from ldmprobe.diffusion.weighting import MinSNR, UniformWeighting
from ldmprobe.io.run_directory import lock, unlock
from ldmprobe.io.store import RecordStore
from ldmprobe.models.codec import LatentCodec
from ldmprobe.training.checkpoint.resume import last_checkpoint
from tests.tracking.wandb_file import _records
from tests.training.killing import arguments, differences, metrics, run, signal_at_call, start, write_config
from tests.training.test_latent_diffusion import digits, module, trainer

TRAINING_STEP = "ldmprobe.training.latent_diffusion:LatentDiffusion.training_step"
VALIDATION_STEP = "ldmprobe.training.latent_diffusion:LatentDiffusion.validation_step"
CHECKPOINT_WRITE = "ldmprobe.training.checkpoint.write:_Remembering.write"
LAST_CHECKPOINT = "lightning.pytorch.callbacks:ModelCheckpoint._save_last_checkpoint"
DDIM_STEPS = "ldmprobe.probing.sampling:sampling_steps"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def whole(config):
    """The run that is not stopped."""
    folder = config.parent / "whole"
    assert run(arguments(config, folder), config.parent / "whole.txt") == 0
    return folder


def _stopped(config, folder, *points, signum=signal.SIGKILL):
    """Exit codes of a run that is stopped at each of the points, (function, number of its call), and gone on with, to
    its end."""
    output = folder.parent / "output.txt"
    codes = [run(arguments(config, folder), output, signal_at_call, *point, signum) for point in points]
    return [*codes, run(arguments(config, folder), output)], output.read_text()


def test_killed_in_a_checkpoint_between_two_and_in_a_probe(config, whole, tmp_path):
    points = [
        (CHECKPOINT_WRITE, 5),  # the first: it starts anew
        (LAST_CHECKPOINT, 1),  # the first is there, last.ckpt is not
        (DDIM_STEPS, 1),
    ]
    codes, output = _stopped(config, tmp_path / "run", *points)
    assert codes == [-signal.SIGKILL] * len(points) + [0]
    assert "was stopped before its first checkpoint; it starts anew" in output
    assert differences(whole, tmp_path / "run") == []
    assert list((tmp_path / "run").rglob("*.partial")) == []


def test_a_run_that_starts_anew_keeps_nothing_of_another_configuration(tmp_path):
    def fit(folder, scale, weighting):
        lock(folder, resuming=True)
        quality = SampleQuality("builtin:digits", 1, num_samples=8, num_steps=2, num_real=16, kid_subset_size=4)
        probes = [DDIMProbe(1, num_samples=8, num_steps=2, num_reference=64), TrainingObjective(1), quality]
        made = trainer(folder, max_steps=1, callbacks=probes)
        found = last_checkpoint(made, str(folder), may_start=True)
        assert found is None
        made.fit(module(codec=LatentCodec(scale=scale), weighting=weighting), digits(), ckpt_path=found)
        unlock(folder)
        return {(record.probe, record.step): record.curves for record in RecordStore(folder).read()}

    fit(tmp_path / "run", 1.0, UniformWeighting())
    before = {path.name for path in [*tmp_path.glob("run/probes/*"), *tmp_path.glob("run/*.safetensors")]}
    assert {"objective-00000000.parquet", "reference.safetensors", "real_features.safetensors"} < before
    again, expected = (fit(tmp_path / name, 2.0, MinSNR()) for name in ("run", "new"))
    assert {path.name for path in tmp_path.glob("run/superseded/*")} == before
    assert again.keys() == expected.keys()
    for record, name in [(record, name) for record, curves in expected.items() for name in curves]:
        np.testing.assert_array_equal(again[record][name].value, expected[record][name].value)


def test_told_to_end_it_saves_and_says_so(config, whole, tmp_path):
    points = [
        (TRAINING_STEP, 3),  # half of a step accumulated: its gradients are saved
        (TRAINING_STEP, 2),  # of batch 5, whose validation is then broken off and due again
        (DDIM_STEPS, 1),  # in a probe: nothing is saved
    ]
    codes, output = _stopped(config, tmp_path / "run", *points, signum=signal.SIGTERM)
    assert codes == [128 + signal.SIGTERM] * len(points) + [0]
    assert "terminated; `--ckpt_path last`" in output
    assert output.count("Restoring states from the checkpoint path at") == len(points)
    assert differences(whole, tmp_path / "run") == []
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"epoch=0-step=12.ckpt", "last.ckpt"}


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(config, whole, tmp_path):
    folder = tmp_path / "run"
    run(
        arguments(config, folder, "--trainer.callbacks.save_top_k=-1"),
        tmp_path / "output.txt",
        signal_at_call,
        TRAINING_STEP,
        20,
    )
    checkpoints = folder / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {
        f"{name}.ckpt" for name in ("last", "epoch=0-step=3", "epoch=0-step=6", "epoch=0-step=9")
    }
    nine, last = checkpoints / "epoch=0-step=9.ckpt", checkpoints / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-5000])
    _flip_a_bit(nine)
    os.utime(checkpoints / "epoch=0-step=3.ckpt", (4e9, 4e9))  # the clock has gone back since
    assert run(arguments(config, folder), tmp_path / "output.txt") == 0
    output = (tmp_path / "output.txt").read_text()
    assert "epoch=0-step=6.ckpt, which is of step 6" in output
    assert "epoch=0-step=9.ckpt (data/" in output
    assert "does not match its checksum" in output
    assert (checkpoints / "last.ckpt.torn").exists()
    assert differences(whole, folder) == []


def _flip_a_bit(path):
    with zipfile.ZipFile(path) as archive:
        largest = max(
            (info for info in archive.infolist() if "/data/" in info.filename), key=lambda info: info.file_size
        )
    data = bytearray(path.read_bytes())
    data[largest.header_offset + largest.file_size // 2 + 200] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # torch does not notice


def test_what_cannot_be_gone_on_with_is_refused(config, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"PK")
    assert run(arguments(config, folder), tmp_path / "output.txt") == 2
    assert "No checkpoint of the run in" in (tmp_path / "output.txt").read_text()
    torn = str(folder / "checkpoints" / "last.ckpt")
    assert run([*arguments(config, folder), f"--ckpt_path={torn}"], tmp_path / "explicit.txt") == 2
    assert "last.ckpt is torn (BadZipFile" in (tmp_path / "explicit.txt").read_text()
    another = str(whole / "checkpoints" / "last.ckpt")
    assert run([*arguments(config, folder), f"--ckpt_path={another}"], tmp_path / "another.txt") == 2
    assert f"is a checkpoint of the run in {whole}" in (tmp_path / "another.txt").read_text()


def test_records_after_the_checkpoint_are_taken_anew(config, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    steps = {record.step for record in RecordStore(folder).read("ddim")}
    (folder / "checkpoints" / "epoch=0-step=12.ckpt").unlink()
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == max(steps) == 12
    assert run(arguments(config, folder, "--trainer.max_steps=13"), tmp_path / "output.txt") == 0
    assert {record.step for record in RecordStore(folder).read("ddim")} == steps | {13}
    assert [row for row in metrics(whole) if row not in metrics(folder)] == []


def _disk_of(num_bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def test_a_disk_that_fills_at_a_checkpoint_ends_the_run_and_costs_nothing(config, whole, tmp_path):
    folder, output = tmp_path / "run", tmp_path / "output.txt"
    run(arguments(config, folder), output, signal_at_call, TRAINING_STEP, 9)
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    assert run(arguments(config, folder), output, _disk_of, len(before) // 2) == 2
    assert (
        "ckpt could not be written: File too large. The checkpoints before it are kept; make room" in output.read_text()
    )
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before
    assert list(folder.rglob("*.partial")) == []
    assert run(arguments(config, folder), output) == 0
    assert differences(whole, folder) == []


def test_a_second_run_in_the_same_directory_is_refused(config, tmp_path):
    folder = tmp_path / "run"
    first = start(arguments(config, folder), tmp_path / "first.txt", signal_at_call, TRAINING_STEP, 2, signal.SIGSTOP)
    while not (folder / "probes" / "ddim-00000000.parquet").exists():
        time.sleep(0.05)
    before = sorted(path for path in folder.rglob("*") if path.name != ".lock")
    assert run(arguments(config, folder), tmp_path / "second.txt") == 2
    assert f"Another run is writing into {folder}. Wait until it has ended" in (tmp_path / "second.txt").read_text()
    assert set(before) <= set(folder.rglob("*"))
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert lock(folder, resuming=True)  # it died with its holder
    unlock(folder)


@pytest.mark.reliability
def test_a_renamed_directory_goes_on_and_its_last_checkpoint_is_the_newest(config, whole, tmp_path):
    old, new, output = tmp_path / "old", tmp_path / "new", tmp_path / "output.txt"
    assert run(arguments(config, old, "--trainer.max_steps=6"), output) == 0
    old.rename(new)
    assert run(arguments(config, new, "--trainer.max_steps=9"), output) == 0
    # Under other settings Lightning takes a ModelCheckpoint for another, and what there is for not its own.
    assert run(arguments(config, new, "--trainer.callbacks.every_n_train_steps=2"), output) == 0
    steps = {
        path.name: torch.load(path, weights_only=True)["global_step"] for path in (new / "checkpoints").glob("*.ckpt")
    }
    assert steps == {"last.ckpt": 12, "epoch=0-step=9.ckpt": 9, "epoch=0-step=12.ckpt": 12}
    # Records and rows of the probes at the end of each part come in addition.
    found = [found for found in differences(whole, new) if found.startswith("checkpoint")]
    assert [difference for difference in found if "ldmprobe.configuration" not in difference] == []
    assert not old.exists()


def test_wandb_goes_on_with_the_same_run(tmp_path):
    config = write_config(tmp_path, max_steps=6, logger="wandb")
    folder, output = tmp_path / "run", tmp_path / "output.txt"
    assert run(arguments(config, folder), output, signal_at_call, TRAINING_STEP, 9) == -signal.SIGKILL
    assert run(arguments(config, folder), output) == 0
    fragments = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(fragments) == 2
    steps = []
    for path in fragments:
        records = list(_records(path.read_bytes()))
        assert {record.run.run_id for record in records if record.HasField("run")} == {
            (folder / "wandb_id").read_text()
        }
        rows = [
            {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            for record in records
        ]
        probed = [row for row in rows if any(key.startswith("probe_ddim/") for key in row)]
        steps.append(sorted({int(row["trainer/global_step"]) for row in probed}))
    assert steps[0] in ([0, 4], [0])  # what a killed process had not yet handed over is logged again
    assert sorted({*steps[0], *steps[1]}) == [0, 4, 6]
    assert steps[1] == [4, 6]
