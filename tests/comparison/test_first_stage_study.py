"""The study of the first stage: its cells can be built, and its table says what the numbers say."""

from pathlib import Path

import pytest
import torch

import first_stage_study as script
from study.first_stage import Cell, Found, figure, judged, markdown, pooled_over_seeds
from tests.helpers import refused
from tests.test_configs import build

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "configs" / "studies" / "first_stage_shapes.yaml"


def test_f_is_varied_in_two_ways_and_every_part_is_built(tmp_path):
    plan = script.read_plan(STUDY, None, quick=False)
    assert {way for cell in script.cells_of(plan) for way in cell.ways} == {"c"}
    plan |= {"factors": [2, 4, 8, 16, 32], "kinds": ["kl", "vq", "fsq"], "ways": ["c", "area"]}
    cells = {cell.name: cell for cell in script.cells_of(plan)}
    assert cells["vq-f4-c4"].ways == ("c", "area")
    assert cells["kl-f8-c4"].ways == ("c",)
    assert (cells["kl-f8-c16"].ways, cells["kl-f2-c1"].ways) == (("area",), ("area",))
    assert "fsq-f8-c16" not in cells
    assert {cell.factor for cell in cells.values()} == {2, 4, 8, 16, 32}
    parts = script.prepare(plan, tmp_path)
    assert len(parts) == 3 * 2 * len(cells)
    folder = tmp_path / "runs" / "fsq-f32-c4" / "seed-1"
    cli = build(tmp_path / "built", folder / "first.yaml")
    images = torch.zeros(1, 3, 64, 64)
    assert tuple(cli.model.autoencoder.encode(images).latents.shape) == (1, 4, 2, 2)
    assert script.prepare(plan, tmp_path) == parts
    with refused(r"fsq-f32-c4.*other settings|other settings"):
        script.prepare(plan | {"size": 128}, tmp_path)


def test_the_table_compares_kinds_by_seed():
    cells = [Cell(kind, 4, 4, ("c", "area")) for kind in ("kl", "vq")]
    rows = []
    for cell in cells:
        for seed, gain in ((0, 9.0), (1, 10.0), (2, 11.0)):
            here = {"kind": cell.kind, "factor": 4, "channels": 4, "seed": seed}
            fid = 50.0 + 20 * seed - gain * (cell.kind == "vq")
            rows += [
                here | {"metric": "fid", "step": step, "seconds": float(step), "value": value}
                for step, value in ((0, 300.0), (50, 2 * fid), (100, fid))
            ]
            rows.append(here | {"metric": "rfid", "step": -1, "seconds": float("nan"), "value": 3.0})
            rows.append(here | {"metric": "skill", "step": 100, "seconds": 0.0, "value": 0.5})
    found = Found(cells, rows)
    text = markdown(found, "known", ["kl, seed 3 failed"])
    assert "FID of vq less that of kl at f = 4: -10 ± 2.5; vq is better" in text
    assert "Missing: kl, seed 3 failed" in text
    assert found.fid_at(cells[0], 75.0) == {0: 75.0, 1: 105.0, 2: 135.0}
    assert figure(found).startswith(b"\x89PNG")
    worse = Found(cells, [row | {"value": row["value"] + 9 * (row["seed"] == 1)} if row["kind"] == "vq" else row
                                 for row in rows])  # fmt: skip
    assert "not told apart by these seeds" in markdown(worse, "known", [])


def test_the_scatter_of_all_cells_is_pooled():
    # Sums of squares 2 and 8, 2 degrees of freedom, t = 4.303.
    (one, width), (two, _), (three, narrow) = pooled_over_seeds([{0: 1.0, 1: 3.0}, {0: 5.0, 1: 9.0}, {1: 7.0}])
    assert (one, two, three) == (2.0, 7.0, 7.0)
    assert width == pytest.approx(4.3027 * (5 / 2) ** 0.5, rel=1e-4)
    assert narrow == pytest.approx(4.3027 * 5**0.5, rel=1e-4)
    assert judged("vq", *pooled_over_seeds([{0: -1.0}])[0]) == "not told apart by these seeds"
