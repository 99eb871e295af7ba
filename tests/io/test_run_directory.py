"""One run, one directory, one process that writes it."""

import os
import signal
import time
from multiprocessing import get_context

import pytest

from ldmprobe.io.run_directory import lock, locked, reserve, unlock
from tests.helpers import refused

FORK = get_context("fork")


def test_a_new_directory_is_made(tmp_path):
    assert reserve(tmp_path / "a" / "b", resuming=False).is_dir()


@pytest.mark.parametrize(
    "trace",
    ["probes/ddim-00000000.parquet", "checkpoints/last.ckpt", "report.html", "held_out_features.safetensors"],
)
def test_a_directory_with_a_run_is_refused_unless_resumed(tmp_path, trace):
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).touch()
    with refused(r"holds a run .* new `--run_dir`, .*; to go on with it add `--ckpt_path last`\.$"):
        reserve(tmp_path, resuming=False)
    with refused(r"Choose a new `--out`, or move the old one away\.$"):
        reserve(tmp_path, resuming=False, option="--out")
    assert reserve(tmp_path, resuming=True) == tmp_path


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with refused("cannot be created"):
        reserve(tmp_path / "run", resuming=False)


# --- one process -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _unlocked():
    yield
    unlock()


def _locked_elsewhere(folder, then):
    """A process that has the directory and then does ``then``."""

    def hold(pipe):
        lock(folder, resuming=True)
        pipe.send(True)
        then()

    here, there = FORK.Pipe()
    process = FORK.Process(target=hold, args=(there,))
    process.start()
    assert here.recv()
    return process


def test_a_directory_that_another_process_has_is_refused_until_that_is_killed(tmp_path):
    process = _locked_elsewhere(tmp_path, then=lambda: time.sleep(60))
    with refused(rf"Another run is writing into {tmp_path}"):
        lock(tmp_path, True, wait_s=0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    lock(tmp_path, True, wait_s=0.2)


def test_a_directory_is_waited_for(tmp_path):
    process = _locked_elsewhere(tmp_path, then=lambda: time.sleep(1))
    lock(tmp_path, True, wait_s=30)
    process.join()


def test_of_two_that_start_at_once_in_a_new_directory_the_second_is_refused_even_after_the_first_has_ended(tmp_path):
    def train():
        time.sleep(1)
        (tmp_path / "probes").mkdir()
        (tmp_path / "probes" / "ddim-00000000.parquet").touch()

    process = _locked_elsewhere(tmp_path, then=train)
    reserve(tmp_path, resuming=False)  # as yet there is no trace of a run
    with refused("already holds a run"):
        lock(tmp_path, resuming=False, wait_s=30)
    process.join()
    assert lock(tmp_path, resuming=True, wait_s=0)


def test_a_process_may_reserve_and_lock_its_own_directory_again(tmp_path):
    lock(tmp_path, True)
    lock(tmp_path, True, wait_s=0)
    (tmp_path / "report.html").touch()
    reserve(tmp_path, resuming=False)  # its own
    unlock()
    with refused("already holds a run"):
        reserve(tmp_path, resuming=False)
    process = _locked_elsewhere(tmp_path, then=lambda: None)
    process.join()
    assert process.exitcode == 0


def test_what_a_killed_run_left_half_written_goes(tmp_path):
    for name in (
        "probes/.ddim-00000002.parquet.7.partial",
        "checkpoints/.last.ckpt.7.partial",
        "checkpoints/last.ckpt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    lock(tmp_path, True)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert left == ["last.ckpt"]


def test_a_directory_that_was_made_for_nothing_is_removed_again(tmp_path):
    def refuse(folder, *files):
        with locked(folder, resuming=False) as out:
            for name in files:
                (out / name).touch()
            raise ValueError("refused")

    (tmp_path / "old").mkdir()
    for name, files, kept in (("new", (), False), ("old", (), True), ("written", ("record",), True)):
        with pytest.raises(ValueError, match="refused"):
            refuse(tmp_path / name, *files)
        assert (tmp_path / name).exists() == kept
