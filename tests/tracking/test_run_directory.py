"""One run, one directory."""

import pytest

from ldmprobe.errors import ConfigurationError
from ldmprobe.tracking.run_directory import claim


def test_a_new_directory_is_made(tmp_path):
    assert claim(tmp_path / "a" / "b", resuming=False).is_dir()


@pytest.mark.parametrize("trace", ["probes/ddim-00000000.parquet", "checkpoints/last.ckpt", "report.html"])
def test_a_directory_with_a_run_is_refused_unless_resumed(tmp_path, trace):
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).touch()
    with pytest.raises(ConfigurationError, match=r"already holds a run .*add `--ckpt_path last`"):
        claim(tmp_path, resuming=False)
    assert claim(tmp_path, resuming=True) == tmp_path


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ConfigurationError, match="cannot be created"):
        claim(tmp_path / "run", resuming=False)
