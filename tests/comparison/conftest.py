"""Three real short runs and their comparison, shared by the tests of this folder."""

import pandas as pd
import pytest

from ldmprobe import StarvedBand, write_comparison
from ldmprobe.comparison.compare import PAGE, TABLE
from tests.comparison.runs import NASTY, fit


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    fit(folder / "plain", max_steps=6)
    fit(folder / "starved", max_steps=4, timesteps=StarvedBand(0, 300, 0.01))
    fit(folder / "other_seed", max_steps=4, seed=1)
    (folder / "plain" / "config.yaml").write_text(
        "run_dir: plain\nmodel:\n  lr: 0.1\n  layers: [1, 2]\nprobes:\n- n: 1\n"
    )
    (folder / "starved" / "config.yaml").write_text(f"run_dir: starved\nmodel:\n  lr: {NASTY}\n  layers: [1, 2]\n")
    return folder


@pytest.fixture(scope="session")
def written(runs_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "new" / "comparison"
    write_comparison([runs_dir / name for name in ("plain", "starved", "other_seed")], out)
    return out


@pytest.fixture(scope="session")
def table(written):
    return pd.read_parquet(written / TABLE)


@pytest.fixture(scope="session")
def html(written):
    return (written / PAGE).read_text()
