"""Built-in data is what it says it is."""

import hashlib

import numpy as np
import pytest
from scipy.fft import dctn
from scipy.ndimage import binary_dilation

from ldmprobe.data.builtin import gaussian, gaussian_spectrum, load_builtin
from ldmprobe.data.shapes import COLORS, GROUND, SHAPES, STYLES
from tests.helpers import refused


@pytest.fixture(scope="module")
def shapes():
    return load_builtin("shapes", num_images=120, size=32, max_shapes=1, shapes=SHAPES, colors=list(COLORS))


def test_digits_are_the_1797_of_scikit_learn_with_their_labels():
    from sklearn.datasets import load_digits

    digits, truth = load_builtin("digits"), load_digits()
    assert len(digits) == 1797
    assert digits["label"][:] == truth.target.tolist()
    assert digits.features["label"].names == list("0123456789")
    for i in (0, 1000, 1796):
        np.testing.assert_array_equal(np.asarray(digits[i]["image"]), np.clip(truth.images[i] * 16, 0, 255))


def test_a_shapes_label_caption_and_pixels_agree(shapes):
    names = shapes.features["label"].names
    for row in shapes:
        color, shape = names[row["label"]].split()
        assert f"{color} {shape} on the" in row["caption"]
        mask = np.asarray(row["mask"]) == 1
        inside = np.median(np.asarray(row["image"])[mask], axis=0)
        nearest = min(COLORS, key=lambda name: np.abs(inside - np.array(COLORS[name])).sum())
        assert nearest == color


def test_the_default_shapes_are_for_ever_the_same_to_the_bit():
    """Records of earlier runs are compared with those of later ones by a hash of their data."""
    digest = hashlib.sha256()
    for row in load_builtin("shapes", num_images=50):
        digest.update(np.asarray(row["image"]).tobytes() + np.asarray(row["mask"]).tobytes())
        digest.update(row["caption"].encode() + bytes([row["label"]]))
    assert digest.hexdigest() == "cafcc97960e8538ff8638922e96e946a114cc53700dbf697ea3395b03fc782f0"


def test_only_the_shapes_and_colors_that_are_named_are_drawn():
    rows = load_builtin("shapes", num_images=60, size=16, shapes=["cross", "heart"], colors=["orange", "red", "pink"])
    names = [f"{color} {shape}" for color in ("orange", "red", "pink") for shape in ("cross", "heart")]
    assert rows.features["label"].names == names
    assert set(rows["label"]) == set(range(6))


@pytest.mark.parametrize(
    "wrong", [{"shapes": ["ring"]}, {"shapes": []}, {"shapes": "cross"}, {"colors": ["red", "teal"]}]
)
def test_shapes_and_colors_that_there_are_not_are_refused_with_those_there_are(wrong):
    with refused(r"expected a list of some of (circle|red), .*(heart|pink)\."):
        load_builtin("shapes", **wrong)


def test_captions_tell_the_size_and_the_side(shapes):
    for row in shapes:
        x0, _, x1, _ = row["boxes"][0]
        assert row["caption"].endswith("left" if (x0 + x1) / 2 < 16 else "right")
        assert ("small" in row["caption"]) == (x1 - x0 < 0.42 * 32)


def test_the_boxes_contain_the_pixels_of_their_masks_and_not_much_else():
    for row in load_builtin("shapes", num_images=60, size=32, max_shapes=3, shapes=SHAPES):
        mask = np.asarray(row["mask"])
        assert len(row["boxes"]) == row["caption"].count(" on the ")
        assert mask.max() <= len(row["boxes"])
        for k, (x0, y0, x1, y1) in enumerate(row["boxes"], start=1):
            ys, xs = np.nonzero(mask == k)
            if len(xs) == 0:  # hidden behind a later shape
                continue
            assert xs.min() >= x0 - 0.75
            assert ys.min() >= y0 - 0.75
            assert xs.max() + 1 <= x1 + 0.75
            assert ys.max() + 1 <= y1 + 0.75
            assert (x1 - x0) * (y1 - y0) < 0.5 * 32 * 32


def test_a_lone_shape_fills_a_good_part_of_its_box(shapes):
    for row in shapes:
        x0, y0, x1, y1 = row["boxes"][0]
        share = (np.asarray(row["mask"]) == 1).sum() / ((x1 - x0) * (y1 - y0))
        assert 0.2 < share < 0.95


def test_shapes_depend_on_their_seed_alone():
    first, again, other = (load_builtin("shapes", num_images=8, seed=seed)["caption"][:] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_variance_of_each_cosine_coefficient_of_gaussian_is_its_spectrum():
    size, channels, n = 8, 2, 2000
    images = np.asarray(gaussian(n, channels, size, exponent=1.5, floor=0.1, seed=3).with_format("numpy")["image"][:])
    coefficients = dctn(images.astype(np.float64), axes=(2, 3), norm="ortho").transpose(1, 0, 2, 3)
    samples = coefficients.reshape(n * channels, size, size)
    spectrum = gaussian_spectrum(size, 1.5, 0.1)
    z = (samples.var(axis=0) / spectrum - 1) / np.sqrt(2 / (n * channels))  # standard error of a variance
    assert np.abs(z).max() < 4.5
    z_mean = samples.mean(axis=0) / np.sqrt(spectrum / (n * channels))
    assert np.abs(z_mean).max() < 4.5


def test_the_mean_of_gaussian_is_its_mean():
    images = np.asarray(gaussian(2000, 1, 4, mean=0.7).with_format("numpy")["image"][:])
    standard_error = np.sqrt(gaussian_spectrum(4)[0, 0] / 16 / 2000)  # the lowest frequency is the image's mean
    assert abs(images.mean() - 0.7) < 4 * standard_error


def test_the_spectrum_falls_with_frequency_down_to_its_floor():
    spectrum = gaussian_spectrum(4, exponent=2.0, floor=0.05)
    assert spectrum[0, 0] == pytest.approx(1.05)
    assert spectrum.min() == pytest.approx(1 / 16**2 + 0.05)
    assert spectrum[3, 3] == spectrum.min()
    assert sorted(spectrum.ravel()) == pytest.approx(sorted(np.arange(1, 17) ** -2.0 + 0.05))


def test_an_unknown_parameter_is_refused_by_name():
    with refused(r"builtin:shapes does not take these dataset_kwargs.*'color'"):
        load_builtin("shapes", color="red")


@pytest.mark.parametrize("wrong", [{"size": 4}, {"num_images": 0}, {"max_shapes": 0}])
def test_shapes_out_of_range_are_refused(wrong):
    with refused("expected size >= 8, the others >= 1"):
        load_builtin("shapes", **wrong)


def test_a_scene_has_its_map_its_objects_and_its_styles():
    """The same scene: every line of an outline and of the hatching lies on the filled shape."""
    settings = {"num_images": 40, "size": 32, "max_shapes": 3, "overlap": False, "styles": list(STYLES)}
    rows, ground, share = load_builtin("shapes", **settings), np.array(GROUND), {style: [] for style in STYLES}
    names = rows.features["label"].names
    assert rows.features["style"].names == list(STYLES)
    assert max(len(row["boxes"]) for row in rows) == 3
    for row in rows:
        mask, colors = np.asarray(row["mask"]), np.asarray(row["map"])
        assert row["objects"]["boxes"] == row["boxes"]
        for k, (label, (x0, y0, x1, y1)) in enumerate(zip(row["objects"]["labels"], row["boxes"], strict=True)):
            own = mask == k + 1
            assert set(colors[own]) == {1 + list(COLORS).index(names[label].split()[0])}
            down, across = own.nonzero()
            assert x0 - 1 <= across.min() <= across.max() <= x1 + 1
            assert y0 - 1 <= down.min() <= down.max() <= y1 + 1
        assert not colors[mask == 0].any()
        near = binary_dilation(mask > 0, iterations=2)  # of smooth edges
        drawn = [np.abs(np.asarray(row[name]).astype(int) - ground).sum(-1) > 60 for name in ("image", "source")]
        assert not any((each & ~near).any() for each in drawn)
        share[STYLES[row["style"]]].append(drawn[0][mask > 0].mean())
    filled, outline, hatched = (np.mean(share[style]) for style in STYLES)
    assert filled > 0.97
    assert max(outline, hatched) < 0.85
