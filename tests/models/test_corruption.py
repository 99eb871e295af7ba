"""What pictures to be restored are made of: a function of the row, of the share that was asked for, and reversible where it says so."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldmprobe.models.corruption import at_cells, downsampled, edges, outlines, pasted, random_masks, sketched


@pytest.mark.parametrize("family", ["boxes", "strokes", "halves"])
def test_masks_hide_the_share_that_is_asked_for_and_belong_to_their_row(family):
    rows = list(range(60))
    masks = random_masks(rows, (24, 32), [family], (0.1, 0.9), seed=5)
    assert torch.equal(masks[[7, 3]], random_masks([7, 3], (24, 32), [family], (0.1, 0.9), seed=5))
    assert not torch.equal(masks, random_masks(rows, (24, 32), [family], (0.1, 0.9), seed=6))
    asked = []
    for row in rows:
        rng = np.random.default_rng((5, row))
        rng.integers(1)
        asked.append(rng.uniform(0.1, 0.9))
    hidden = masks.float().mean((1, 2, 3)).numpy()
    assert np.abs(hidden - np.array(asked)).mean() < 0.03
    assert np.abs(hidden - np.array(asked)).max() < 0.15  # the last stroke
    assert hidden.min() < 0.2
    assert hidden.max() > 0.8


def test_all_is_all_and_a_cut_cell_is_hidden():
    assert random_masks([0, 1], (4, 4), ["all"], (0.1, 0.9)).all()
    mask = torch.zeros(1, 1, 8, 8)
    mask[0, 0, 3, 5] = 1
    assert at_cells(mask, (2, 2)).flatten().tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("how", ["box", "bicubic", "blur"])
def test_small_images_have_the_colors_of_the_large_ones(how):
    """A linear ramp has its own values at the middle of each cell; of bicubic interpolation without a filter it has, too,
    but not of a pattern that is finer than the small image."""
    ramp = torch.linspace(-0.9, 0.9, 32).expand(1, 3, 32, 32)
    small = downsampled(ramp, 4, how, [4], seed=1)
    assert small.shape == (1, 3, 8, 8)
    tolerance = 0.12 if how == "blur" else 1e-3
    torch.testing.assert_close(small[..., 2:-2], F.avg_pool2d(ramp, 4)[..., 2:-2], rtol=0, atol=tolerance)
    checkers = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1).expand(1, 3, 32, 32)
    assert downsampled(checkers, 4, how, [4], seed=1).abs().max() < (0.2 if how == "blur" else 0.02)
    assert torch.equal(downsampled(ramp, 4, how, [4], 1), downsampled(ramp, 4, how, [4], 1))
    assert downsampled(torch.zeros(1, 3, 98, 98), 49, how, [4]).shape == (1, 3, 2, 2)  # 98 · (1/49) is below 2


def test_lines_are_where_regions_end():
    mask = torch.zeros(1, 12, 12, dtype=torch.uint8)
    mask[0, 3:9, 3:9] = 2
    ring = outlines(mask)[0, 0]
    assert int(ring.sum()) == 20  # the edge of a square of 6
    assert not ring[4:8, 4:8].any()
    found = edges(mask[:, None].float(), 0.5)[0, 0].bool()
    assert found[3, 5]
    assert found[2, 5]
    assert not found[5, 5]
    assert not edges(torch.ones(1, 3, 8, 8)).any()
    thick = sketched(outlines(mask).expand(40, -1, -1, -1), range(40), 0, gaps=0.0, thickness=2)
    assert {int(each.sum()) for each in thick} == {
        20,
        int(F.max_pool2d(F.pad(ring[None, None].float(), (0, 1, 0, 1)), 2, 1).sum()),
    }
    gaps = sketched(outlines(mask).expand(40, -1, -1, -1), range(40), 0, gaps=0.5)
    assert 0.3 < float(gaps.float().sum((1, 2, 3)).mean()) / 20 < 0.7


def test_known_pixels_are_pasted_and_the_seam_is_feathered():
    samples, images = torch.ones(1, 1, 1, 16), torch.zeros(1, 1, 1, 16)
    mask = (torch.arange(16) >= 8).float().view(1, 1, 1, 16)
    assert torch.equal(pasted(samples, images, mask), mask)
    soft = pasted(samples, images, mask, feather=2).flatten()
    assert soft[8:].min() == 1  # what is hidden is the sample's alone
    assert soft[:4].max() == 0
    assert bool((soft.diff() >= 0).all())
    assert 0 < soft[7] < 1
