"""A folder of parts is read as one checkpoint, and nothing in it is run."""

import os
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import save

from ldmprobe import load_model
from ldmprobe.training.checkpoint.newest import damage
from ldmprobe.training.checkpoint.sharded import is_sharded_checkpoint, load_sharded_checkpoint
from tests.helpers import refused
from tests.training.test_latent_diffusion import assert_same_state, stopped


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint of one process, saved anew as ModelParallelStrategy does (here of one part)."""
    checkpoint = torch.load(Path(stopped(tmp_path, 1)).rename(tmp_path / "whole.ckpt"), weights_only=True)
    parts = {"state_dict": checkpoint.pop("state_dict"), "optimizer_0": checkpoint.pop("optimizer_states")[0]}
    save_parts(parts, tmp_path / "parts.ckpt")
    torch.save(checkpoint, tmp_path / "parts.ckpt" / "meta.pt")
    return tmp_path / "parts.ckpt"


def save_parts(parts, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(parts, checkpoint_id=path, no_dist=True)


def rewrite_index(path, change):
    index = pickle.loads((path / ".metadata").read_bytes())
    (path / ".metadata").write_bytes(pickle.dumps(change(index) or index))


def test_parts_are_read_as_the_whole(sharded):
    whole = torch.load(sharded.with_name("whole.ckpt"), weights_only=True)
    assert is_sharded_checkpoint(sharded)
    assert not is_sharded_checkpoint(sharded.with_name("whole.ckpt"))
    loaded = load_sharded_checkpoint(sharded)
    assert_same_state(loaded["state_dict"], whole["state_dict"])
    assert loaded["global_step"] == 1
    model = load_model(str(sharded), "cpu")
    assert_same_state(model.network.state_dict(), load_model(sharded.with_name("whole.ckpt")).network.state_dict())


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_index_that_would_run_something_is_refused(sharded, tmp_path):
    rewrite_index(sharded, lambda index: Runs(tmp_path / "ran"))
    with refused(r"its index would run posix\.mkdir"):
        load_model(sharded)
    assert not (tmp_path / "ran").exists()


def test_an_index_of_files_elsewhere_is_refused(sharded):
    def elsewhere(index):
        for part in index.storage_data.values():
            part.relative_path = "../whole.ckpt"

    rewrite_index(sharded, elsewhere)
    with refused("names a file outside of it"):
        load_model(sharded)


def test_a_weight_that_is_said_to_be_an_object_is_not_unpickled(sharded, tmp_path):
    # torch.distributed.checkpoint unpickles such entries without a look.
    class Save:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    name = "state_dict.ema.network.conv_in.weight"
    state = {"state_dict": {"ema.network.conv_in.weight": Save()}}
    save_parts(state, tmp_path / "object.ckpt")
    theirs = pickle.loads((tmp_path / "object.ckpt" / ".metadata").read_bytes())
    (part,) = theirs.storage_data.values()
    (tmp_path / "object.ckpt" / part.relative_path).rename(sharded / "object.distcp")
    part.relative_path = "object.distcp"

    def replaced(index):
        index.state_dict_metadata[name] = theirs.state_dict_metadata[name]
        index.storage_data = {k: v for k, v in index.storage_data.items() if k.fqn != name} | theirs.storage_data

    rewrite_index(sharded, replaced)
    with refused(r"(?s)does not hold the model that it describes.*conv_in\.weight"):
        load_model(sharded)
    assert not (tmp_path / "ran").exists()


def test_a_run_does_not_go_on_from_parts_that_would_run_something(sharded, tmp_path):
    assert damage(sharded) is None
    save_parts({"optimizer_0": {"lr": Runs(tmp_path / "ran")}}, tmp_path / "theirs.ckpt")
    shutil.copy(sharded / "meta.pt", tmp_path / "theirs.ckpt" / "meta.pt")
    assert "UnpicklingError" in damage(tmp_path / "theirs.ckpt")
    rewrite_index(sharded, lambda index: Runs(tmp_path / "ran"))
    assert "would run" in damage(sharded)
    assert not (tmp_path / "ran").exists()
