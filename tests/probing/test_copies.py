"""Copies of training images among samples: all of a perfect copy machine's are found, none of a perfect denoiser's."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ldmprobe import CopySearch, RealFeatures, RecordStore, Sampling, load_run, probe_quality
from ldmprobe.cli import main
from ldmprobe.probing.copies import nearest
from tests.helpers import gaussian_model
from tests.probing.gaussian import copy_machine, draw, on_ranks
from tests.probing.test_judge import probed

SHAPE, CPU = (1, 8, 8), torch.device("cpu")


class Pixels(nn.Flatten):
    num_features = 64


@pytest.fixture(scope="module")
def images():
    """Images that were trained on, and others: draws of the same Gaussian, within [−1, 1]."""
    drawn = 0.3 * draw(gaussian_model(SHAPE, torch.float32), 64)
    return drawn[:24], drawn[24:]


def copies(model, images, ranks=None, order=slice(None)):
    network, (training, held_out) = Pixels(), images
    known, unseen = (RealFeatures.of(network, [each], CPU) for each in (training, held_out))
    search = CopySearch(known, lambda places: training[order][list(places)], unseen, num_shown=3)
    return probe_quality(model, known, network, Sampling(9, 40), kid_subset_size=5, ranks=ranks, copies=search)


def near_duplicates(images):
    return images + 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png))).astype(float)


def test_a_copy_machines_samples_are_copies_and_are_shown_beside_their_originals(images):
    model = copy_machine(images[0])
    record = copies(model, images)
    found = record.scalars
    assert (found["copied"], found["copied_held_out"]) == (1, 0)
    assert found["copied/lower"] == pytest.approx(0.701, abs=1e-3)  # Wilson, 9 of 9
    assert found["copied_held_out/upper"] == pytest.approx(0.088, abs=1e-3)  # 0 of 40
    assert "Samples are copies of training images" in record.provenance["notes"]["copied"]
    assert len(record.images["copies"]) == 3
    for picture in map(pixels, record.images["copies"]):
        sample, original = picture[:, :8], picture[:, 9:]
        assert np.abs(sample - original).mean() < 6  # of 255
        assert np.std(original) > 10
    for other in on_ranks(2, lambda ranks: copies(model, images, ranks)):
        assert other.scalars == pytest.approx(found, rel=1e-4, abs=1e-4)
        assert len(other.images["copies"]) == 3
    shuffled = copies(model, images, order=torch.arange(23, -1, -1))
    assert shuffled.scalars == found
    assert "copies" not in shuffled.images  # rather none than the wrong ones


def test_fresh_draws_are_no_copies(images):
    training, fresh = images
    ratio, _ = nearest(fresh.flatten(1), training.flatten(1))
    assert float(ratio.min()) > 0.5
    planted = near_duplicates(training[:5])
    ratio, place = nearest(planted.flatten(1), training.flatten(1))
    assert place.tolist() == [0, 1, 2, 3, 4]
    assert float(ratio.max()) < 1 / 3
    twice = torch.cat([training, training[:1]])
    assert float(nearest(training[:1].flatten(1), twice.flatten(1))[0]) == 0  # trained on twice, and copied


def test_a_copy_of_an_image_that_training_has_twice_is_one():
    generator = torch.Generator().manual_seed(0)
    once = 3 * torch.randn(200, 96, generator=generator).abs()
    known, rounding = once.repeat(2, 1), torch.randn(200, 96, generator=generator)
    rounded = torch.cat([once, once + 1e-6 * rounding])
    for copied, of in (
        (once, known),
        (once + 0.1 * rounding, known),
        (once, rounded),
        (once + 1e-4 * rounding, rounded),
    ):
        ratio, place = nearest(copied, of)
        assert float(ratio.max()) < 1 / 3
        assert (place % 200).tolist() == list(range(200))
    fresh = 3 * torch.randn(200, 96, generator=generator).abs()
    assert float(nearest(fresh, known)[0].min()) > 1 / 3
    assert nearest(once[:3], once[:1].repeat(4, 1))[0].tolist() == [0, 1, 1]  # of a single image


def test_a_verdict_says_so_where_there_are_more_copies_than_among_held_out_images(images, capsys):
    twins = images[0], near_duplicates(images[0])
    healthy = copies(gaussian_model(SHAPE, torch.float32), images)
    copied, of_duplicates = (copies(copy_machine(images[0]), beside) for beside in (images, twins))
    assert [record.scalars["copied"] for record in (healthy, copied, of_duplicates)] == [0, 1, 1]
    for name, quality, code in (("healthy", healthy, 0), ("copied", copied, 1), ("duplicates", of_duplicates, 0)):
        for record in (probed(100), replace(quality, step=100), probed(200)):
            RecordStore(name).append(record)
        assert main(["verdict", name]) == code, name
    assert "memorizing: Samples are copies of training images: of 9 samples 100.0% (95 %: " in capsys.readouterr().out
    verdict = load_run("copied").verdict
    assert verdict.sentence.endswith(" of 40 held-out images 0.0% (95 %: 0.0% to 8.8%). That was at step 100.")
    assert "take an earlier checkpoint" in verdict.action
