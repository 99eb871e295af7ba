"""Checkpoints on disk: whole or not there, checked, and never unpickled blindly."""

import os
import pickle
import resource
from multiprocessing import get_context

import pytest
import torch
import torch.distributed.checkpoint

from ldmprobe.io.atomic import partial_path
from ldmprobe.training.checkpoint.newest import damage, newer_last, newest_intact, set_aside_later
from ldmprobe.training.checkpoint.write import AtomicCheckpointIO
from tests.helpers import refused


def checkpoint(step, batches=None, size=1000):
    progress = {"epoch_loop.batch_progress": {"total": {"processed": batches or step}}}
    return {"global_step": step, "loops": {"fit_loop": progress}, "weights": torch.full((size,), float(step))}


def save(path, step, **kwargs):
    AtomicCheckpointIO().save_checkpoint(checkpoint(step, **kwargs), path)
    return path


def test_what_is_saved_is_loaded(tmp_path):
    path = save(tmp_path / "new" / "a.ckpt", 3)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["weights"], torch.full((1000,), 3.0))
    assert [found.name for found in path.parent.iterdir()] == ["a.ckpt"]
    assert damage(path) is None


def test_a_save_that_raises_keeps_what_was_there(tmp_path):
    path = save(tmp_path / "a.ckpt", 3)
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        AtomicCheckpointIO().save_checkpoint({**checkpoint(4), "bad": lambda: None}, path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["a.ckpt"]


def _save_on_a_full_disk(path, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with refused(r"could not be written: File too large\. The checkpoints before it are kept"):
        AtomicCheckpointIO().save_checkpoint(checkpoint(4, size=100_000), path)
    os._exit(7)


@pytest.mark.parametrize("limit", [0, 1000, 100_000])
def test_a_full_disk_is_told_and_keeps_what_was_there(tmp_path, limit):
    path = save(tmp_path / "a.ckpt", 3)
    before = path.read_bytes()
    child = get_context("fork").Process(target=_save_on_a_full_disk, args=(path, limit))
    child.start()
    child.join(60)
    assert child.exitcode == 7
    assert [found.name for found in tmp_path.iterdir()] == ["a.ckpt"]
    assert path.read_bytes() == before


class _Evil:
    def __reduce__(self):
        return (os.system, ("touch was_run",))


def test_code_in_a_checkpoint_is_not_run_unless_asked_for(tmp_path):
    torch.save({"global_step": 1, "evil": _Evil()}, tmp_path / "a.ckpt")
    with refused(r"values \(posix.system\): loading it may run code .*add `--weights_only false`"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert not os.path.exists("was_run")
    AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert os.path.exists("was_run")


# --- the newest ------------------------------------------------------------------------------------------------------


def test_the_newest_is_furthest_in_training_not_latest_on_the_clock(tmp_path):
    for step, clock in ((9, 1e9), (10, 2e8), (2, 1.5e9)):
        os.utime(save(tmp_path / f"step={step}.ckpt", step), (clock, clock))
    saved, torn = newest_intact([tmp_path])
    assert (saved.path.name, saved.global_step, torn) == ("step=10.ckpt", 10, {})


def test_of_equal_steps_the_one_with_more_batches_then_last_is_taken(tmp_path):
    save(tmp_path / "epoch=0-step=4.ckpt", 4, batches=8)
    save(tmp_path / "last.ckpt", 4, batches=8)
    assert newest_intact([tmp_path])[0].path.name == "last.ckpt"
    save(tmp_path / "between.ckpt", 4, batches=9)
    assert newest_intact([tmp_path])[0].path.name == "between.ckpt"


@pytest.mark.parametrize("cut", [0, 1, 100, 1000, -1, -100])
def test_a_cut_checkpoint_is_torn(tmp_path, cut):
    save(tmp_path / "1.ckpt", 1)
    path = save(tmp_path / "2.ckpt", 2)
    path.write_bytes(path.read_bytes()[:cut])
    assert damage(path) is not None
    saved, torn = newest_intact([tmp_path])
    assert (saved.path.name, list(torn)) == ("1.ckpt", [path])


def test_every_flipped_bit_of_the_weights_is_seen(tmp_path):
    path = save(tmp_path / "2.ckpt", 2)
    data = path.read_bytes()
    start = data.index(torch.full((1000,), 2.0).numpy().tobytes())
    for position in range(start, start + 4000, 97):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        assert "does not match its checksum" in damage(path) or "BadZipFile" in damage(path)


def test_halves_links_and_files_of_a_signal_handler_are_not_counted(tmp_path):
    partial_path(tmp_path / "1.ckpt").write_bytes(b"half")
    assert newest_intact([tmp_path]) == (None, {})
    path = save(tmp_path / "1.ckpt", 1)
    (tmp_path / "last.ckpt").symlink_to(path)
    (tmp_path / "dangling.ckpt").symlink_to(tmp_path / "gone.ckpt")
    save(tmp_path / "hpc_ckpt_1.ckpt", 7)
    assert newest_intact([tmp_path])[0].path == path


def test_a_sharded_checkpoint_counts_when_its_parts_are_there(tmp_path):
    save(tmp_path / "1.ckpt", 1)
    sharded = tmp_path / "2.ckpt"
    sharded.mkdir()
    torch.save(checkpoint(2), sharded / "meta.pt")
    assert newest_intact([tmp_path])[0].global_step == 1
    torch.distributed.checkpoint.save({"weight": torch.ones(2)}, checkpoint_id=sharded, no_dist=True)
    assert newest_intact([tmp_path])[0].path == sharded


def test_a_last_checkpoint_with_a_newer_one_beside_it_is_noticed(tmp_path):
    last = save(tmp_path / "last.ckpt", 6)
    assert newer_last(last) is None
    save(tmp_path / "last-v1.ckpt", 9)
    assert newer_last(last).global_step == 9
    assert newer_last(tmp_path / "last-v1.ckpt") is None
    save(last, 12)
    assert newer_last(last) is None


def test_checkpoints_of_a_branch_that_was_left_are_not_the_last(tmp_path):
    for step in (3, 6, 9):
        save(tmp_path / f"step={step}.ckpt", step)
    assert newest_intact([tmp_path])[0].path.name == "step=9.ckpt"
    assert [path.name for path in set_aside_later([tmp_path], after=3)] == [
        "step=6.ckpt.superseded",
        "step=9.ckpt.superseded",
    ]
    assert newest_intact([tmp_path])[0].path.name == "step=3.ckpt"


@pytest.mark.parametrize("checkpoints", ["checkpoints", "elsewhere/deep"])
def test_checkpoints_of_a_run_in_a_sub_folder_are_not_its_own(tmp_path, checkpoints):
    save(tmp_path / checkpoints / "step=3.ckpt", 3)
    (tmp_path / "config.yaml").touch()
    again = tmp_path / "again"
    save(again / "checkpoints" / "step=9.ckpt", 9)
    (again / "checkpoints" / "torn.ckpt").touch()
    (again / "config.yaml").touch()
    saved, torn = newest_intact([tmp_path])
    assert (saved.global_step, torn) == (3, {})
    assert set_aside_later([tmp_path], after=3) == []
    assert newest_intact([again])[0].global_step == 9
    (again / "config.yaml").unlink()
    assert newest_intact([tmp_path])[0].global_step == 9  # a folder, not a run
