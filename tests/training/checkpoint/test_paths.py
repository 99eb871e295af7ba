"""What a ModelCheckpoint remembers of its files follows them."""

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ldmprobe.training.checkpoint.paths import paths_here


def _saved(folder, *names):
    """A ModelCheckpoint of the folder that has kept these, each worse than the one before, and what a checkpoint has of
    it."""
    folder.mkdir()
    for name in (*names, "last.ckpt"):
        (folder / name).touch()
    callback = ModelCheckpoint(folder, monitor="val/loss", save_top_k=2, save_last=True)
    callback.best_k_models = {str(folder / name): torch.tensor(float(i)) for i, name in enumerate(names)}
    callback.best_model_path, callback.kth_best_model_path = (str(folder / names[i]) for i in (0, -1))
    callback.kth_value = torch.tensor(float(len(names) - 1))
    callback.last_model_path = str(folder / "last.ckpt")
    return callback.state_dict()


def _gone_on(folder, state, alone=True):
    callback = ModelCheckpoint(folder, monitor="val/loss", save_top_k=2, save_last=True)
    callback.load_state_dict({**state, **paths_here(callback, state, alone)})
    return callback


def test_the_best_are_known_where_they_have_gone(tmp_path):
    state = _saved(tmp_path / "old", "a.ckpt", "b.ckpt")
    new = (tmp_path / "old").rename(tmp_path / "new")
    callback = _gone_on(new, state)
    assert {path: float(score) for path, score in callback.best_k_models.items()} == {
        str(new / "a.ckpt"): 0.0,
        str(new / "b.ckpt"): 1.0,
    }
    assert callback.best_model_path == str(new / "a.ckpt")
    assert callback.last_model_path == str(new / "last.ckpt")
    assert callback.kth_best_model_path == str(new / "b.ckpt")


def test_what_has_been_deleted_counts_no_more(tmp_path):
    state = _saved(tmp_path / "old", "a.ckpt", "b.ckpt")
    new = (tmp_path / "old").rename(tmp_path / "new")
    (new / "b.ckpt").unlink()
    callback = _gone_on(new, state)
    assert callback.kth_best_model_path == str(new / "a.ckpt")
    assert float(callback.kth_value) == 0.0


def test_a_run_that_goes_on_elsewhere_leaves_the_other_runs_files_alone(tmp_path):
    state = _saved(tmp_path / "old", "a.ckpt", "b.ckpt")
    (tmp_path / "new").mkdir()
    assert paths_here(ModelCheckpoint(tmp_path / "new", save_last=True), state, alone=True) == {}


def test_last_is_always_the_newest_unless_two_callbacks_share_it(tmp_path):
    state = _saved(tmp_path / "old", "a.ckpt")
    first = state | {"last_model_path": ""}  # of a checkpoint before last.ckpt, to which the run has been set back
    assert _gone_on(tmp_path / "old", first).last_model_path == str(tmp_path / "old" / "last.ckpt")
    assert _gone_on(tmp_path / "old", first, alone=False).last_model_path == ""
    assert paths_here(ModelCheckpoint(tmp_path / "old"), None, alone=True) == {}
