"""No network, no more threads than cores, nothing written outside the test's own folder."""

import gc
import os
import sys
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # of BLAS and OpenMP, too, which read it when they are imported; idle ones spin

import pytest

LONGEST = (
    "test_distributed.py", "test_resume.py", "test_reweighting_study.py", "test_extension.py", "test_audit.py",
    "test_probe_callbacks.py", "test_forgetting.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first, so that no process is left to wait for another at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True, scope="session")
def _process() -> Iterator[None]:
    """One thread, as tests run in a process per core. And libraries' log handlers keep the standard error that they
    find when they are imported: here one that outlives each test. What has been imported by now stays, and the garbage
    collector need not go through it again."""
    import datasets  # noqa: F401
    import diffusers  # noqa: F401
    import lightning  # noqa: F401
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()  # else libraries tell of leaks when the process ends


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Relative paths, such as ``runs/``, land in the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf_cache"))


@pytest.fixture
def forked_audit(monkeypatch):
    """The fresh processes of ``ldmprobe audit``, which here need not import everything anew."""
    from tests.processes import SERVER

    monkeypatch.setattr("ldmprobe.audit.run.multiprocessing.get_context", lambda method: SERVER)


@pytest.fixture(autouse=True)
def _own_wandb_run():
    """A WandbLogger would go on in the run that an earlier test of this process left open."""
    yield
    if (wandb := sys.modules.get("wandb")) and wandb.run:
        wandb.finish()


@pytest.fixture
def alone(monkeypatch):
    """As if no package of an extra, nor wandb, were installed."""
    from ldmprobe.configuration.foreign_code import imports_in_the_open
    from tests.optional import hide_optional

    with imports_in_the_open():  # what may be named is settled once in a process, by what is installed
        pass
    hide_optional(monkeypatch)
