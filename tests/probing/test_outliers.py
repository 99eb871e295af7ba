"""Levels that are compared draw by draw: what differs between images does not hide what differs between levels."""

import numpy as np
import pytest
import torch

from ldmprobe.analysis.intervals import clustered_half_width
from ldmprobe.io.record import Curve
from ldmprobe.probing.outliers import OUTLIERS, outliers
from tests.analysis.test_faults import PERFECT

L = len(PERFECT.log_snr)
IMAGES, N = 128, 512
BAND = slice(4, 7)
SHIFT = 0.05


def heights(offset: torch.Tensor, gain: torch.Tensor) -> dict[str, np.ndarray]:
    """Of draws (N, L) whose means are the two curves."""
    image = torch.arange(N) % IMAGES

    def curve(draws: torch.Tensor) -> Curve:
        value, width = draws.mean(0).numpy(), clustered_half_width(draws, image).numpy()
        return Curve(np.arange(L), PERFECT.log_snr, value, value - width, value + width)

    curves = {"prediction_offset": curve(offset), "prediction_gain": curve(gain)}
    curves["calibration_residual"] = curve(torch.zeros(N, L, dtype=torch.float64))
    found = outliers(PERFECT, curves, {"prediction_offset": offset, "prediction_gain": gain}, image)
    return {name: found[name].value for name in found}


@pytest.mark.parametrize("name", ["outlier/shifted", "outlier/too_large"])
def test_a_step_between_levels_is_found_below_what_images_differ_by(name):
    generator = torch.Generator().manual_seed(0)
    of_image = torch.randn(IMAGES, 1, generator=generator, dtype=torch.float64)[torch.arange(N) % IMAGES]
    own = torch.randn(N, L, generator=generator, dtype=torch.float64)
    planted = torch.zeros(L, dtype=torch.float64)
    planted[BAND] = SHIFT
    kind = next(kind for kind in OUTLIERS if kind.name == name)
    brightness = 0.4 * (of_image - of_image.mean()) + 0.05 * own
    offset, gain = brightness + planted, 1 + brightness - planted
    unpaired = 4 * clustered_half_width(brightness, torch.arange(N) % IMAGES)
    assert float(unpaired.min()) > 2 * SHIFT  # of a level by itself nothing could be said
    found = heights(offset, gain)[name]
    assert (found[BAND] > kind.least).all()
    assert (found[BAND] <= SHIFT).all()
    assert not (np.delete(found, np.arange(L)[BAND])[1:-1] > kind.least).any()
    assert np.isnan(found[[0, -1]]).all()
    healthy = heights(brightness, 1 + brightness)[name]
    assert not (healthy > 0).any()
