"""Rows keep their side whatever is added, renamed, moved or packed otherwise; and data sets are told apart."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from ldmprobe import ImageData, LatentStatistics, load_model
from ldmprobe.data.identity import held_out_mask
from ldmprobe.data.image_files import ImageFiles
from ldmprobe.data.image_hashes import image_hash, image_hashes
from ldmprobe.inference import real_latents
from tests.helpers import encoded, ready, refused
from tests.test_bad_input import _config, _fit, _probe, _refused

KINDS = ["folder", "parquet", "save_to_disk", "arrays", "folder, streamed", "parquet, streamed"]


def picture(number: int) -> PILImage.Image:
    """A picture of 8×8 random pixels, of which the first is its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels[0, 0, 0] = number
    return PILImage.fromarray(pixels)


def data(kind: str, place: Path, names: dict[str, int], **options) -> ImageData:
    """A data set of numbered pictures, in the order of their names, set up."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    numbers = [names[name] for name in sorted(names)]
    dataset = place
    if "folder" in kind:
        for name, number in names.items():
            (place / name).write_bytes(encoded(picture(number))["bytes"])
    elif kind == "arrays":
        dataset = place / "a.parquet"
        Dataset.from_dict({"image": [np.asarray(picture(number)) for number in numbers]}).to_parquet(dataset)
    else:
        rows = [encoded(picture(number)) for number in numbers]
        table = Dataset.from_dict({"image": rows}, Features({"image": Image()}))
        dataset = place / "a.parquet" if "parquet" in kind else place
        table.to_parquet(dataset) if "parquet" in kind else table.save_to_disk(dataset)
    return ready(ImageData(str(dataset), streaming="streamed" in kind, batch_size=4, **options))


def sides(found: ImageData) -> tuple[set[int], set[int]]:
    """The numbers of the pictures trained on and held out."""
    train, held_out = (
        {
            round(float(image[0, 0, 0] + 1) * 127.5)
            for batch in found.reference_batches(999, side)
            for image in batch["image"]
        }
        for side in (False, True)
    )
    return train, held_out


@pytest.mark.parametrize("streaming", [False, True])
def test_held_out_images_that_are_training_images_are_told_with_their_share(streaming, tmp_path):
    for split, numbers in (("train", range(40)), ("test", range(30, 50)), ("other", range(40, 50))):
        rows = [encoded(picture(number)) for number in numbers]
        Dataset.from_dict({"image": rows}, Features({"image": Image()})).to_parquet(tmp_path / f"{split}.parquet")
    files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "test", "other")}

    def shared(held_out: str | None) -> float:
        kwargs = {"data_files": files}
        found = ready(
            ImageData("parquet", kwargs, held_out_split=held_out, image_folder=str(tmp_path), streaming=streaming)
        )
        return found.identity.repeated

    with pytest.warns(UserWarning, match="50% of the images of split 'test', which is held out, are in split 'train'"):
        assert shared(None) == 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shared("other") == 0
        assert shared("train") == 1  # as it is asked for


FIRST = {f"m{number:03d}.png": number for number in range(60)}
MORE = {f"{'az'[number % 2]}{number:03d}.png": number for number in range(60, 100)}
RENAMED = {f"x{59 - number:03d}.png": number for number in range(60)}


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_changes_sides_whatever_is_added_renamed_or_moved(kind, tmp_path):
    train, held_out = sides(data(kind, tmp_path / "one", FIRST))
    assert (len(train & held_out), len(train | held_out)) == (0, 60)
    assert 2 <= len(held_out) <= 14
    grown = sides(data(kind, tmp_path / "one", FIRST | MORE))
    assert train <= grown[0]
    assert held_out <= grown[1]
    assert sides(data(kind, tmp_path / "another place", RENAMED)) == (train, held_out)


def test_the_same_rows_are_held_out_of_every_kind_of_source(tmp_path):
    chosen = [sides(data(kind, tmp_path / kind, FIRST)) for kind in KINDS if kind != "arrays"]
    assert all(each == chosen[0] for each in chosen)


def test_copies_of_an_image_are_on_one_side(tmp_path):
    copies = {f"copy{k}_of_{name}": number for k in range(3) for name, number in FIRST.items()}
    found = data("folder", tmp_path / "one", FIRST | copies)
    assert len(found.rows["train"]) + len(found.rows["held_out"]) == 240
    train, held_out = sides(found)
    assert not train & held_out


def test_a_stream_holds_out_at_most_so_many_rows_and_trains_on_none_of_that_share(tmp_path):
    train, held_out = sides(data("parquet", tmp_path / "one", FIRST, held_out_fraction=0.4))
    found = data("parquet, streamed", tmp_path / "one", FIRST, held_out_fraction=0.4, held_out_rows=5)
    trained, kept = sides(found)
    assert trained == train
    assert len(kept) == 5
    assert kept < held_out


def test_the_held_out_split_is_drawn_without_regard_to_names(tmp_path):
    """Its first batches, to which validation may be limited, are not the first of a sorted folder."""
    found = data("folder", tmp_path / "one", FIRST | MORE, held_out_fraction=0.5)
    numbers = [row["__row__"] for row in found.rows["held_out"]]
    assert numbers != sorted(numbers)


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.4])
def test_of_few_rows_some_are_held_out_and_none_is_held_out_after_it_was_trained_on(fraction):
    for seed in range(20):
        hashes = np.random.default_rng(seed).integers(0, 2**64, 200, dtype=np.uint64)
        trained: set[int] = set()
        for n in range(12, 200):
            mask = held_out_mask(hashes[:n], fraction)
            assert 2 <= mask.sum() < n
            assert not trained & set(hashes[:n][mask].tolist())
            if n < 60 or n % 20 == 0:
                trained = set(hashes[:n][~mask].tolist())


def test_the_share_that_is_held_out_is_as_asked():
    """A binomial number of 100,000 rows: within four standard deviations."""
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    for fraction in (0.01, 0.1, 0.5):
        assert abs(held_out_mask(hashes, fraction).mean() - fraction) < 4 * (fraction * (1 - fraction) / 1e5) ** 0.5


def test_two_rows_are_one_to_train_on_and_one_to_hold_out_and_one_image_is_not_enough():
    assert sorted(held_out_mask(np.array([9, 5], np.uint64), 0.1)) == [False, True]
    assert held_out_mask(np.array([9, 5, 9], np.uint64), 0.1).tolist() == [False, True, False]
    with refused(r"All 3 rows have the same image.*`held_out_split`"):
        held_out_mask(np.array([5, 5, 5], np.uint64), 0.1)


@pytest.mark.parametrize("size", [0, 100, 12_288, 12_289, 100_000])
def test_an_image_has_one_hash_wherever_it_is_stored(size, tmp_path):
    content = np.random.default_rng(size).bytes(size)
    changed = [content[:-1] + b"?", b"?" + content[1:], content + b"?"] if size else [b"?"]
    path = tmp_path / "image"
    path.write_bytes(content)
    rows = [{"bytes": content, "path": "x"}, {"bytes": None, "path": str(path)}]
    rows += [{"bytes": each, "path": None} for each in changed]
    table = Dataset.from_dict({"image": rows}, Features({"image": Image(decode=False)}))
    files = ImageFiles((str(tmp_path),))
    one, other, *others = image_hashes(table, "image", files).tolist()
    assert one == other == image_hash(rows[0], files) == image_hash(rows[1], files) == image_hash(content, files)
    assert one not in others
    order = [2, 0, 2, 1]
    assert (
        image_hashes(table.select(order), "image", files).tolist()
        == image_hashes(table, "image", files)[order].tolist()
    )


# --- going on with other data ----------------------------------------------------------------------------------------


def run(folder: Path, names: dict[str, int], *arguments: str, probed: bool = False) -> int:
    data("folder", folder, names)
    return _fit(settings(folder, probed), *arguments)


def settings(folder: Path, probed: bool = False) -> dict:
    config = _probe(every_n_steps=100) if probed else _config()
    config["data"]["init_args"] = {"dataset": str(folder), "batch_size": 4}
    return config


def test_a_folder_that_grows_is_gone_on_with_told_and_measured_by_the_same_reference(tmp_path):
    assert run(tmp_path / "pictures", FIRST, probed=True) == 0
    reference = Path("runs/one/reference.safetensors").read_bytes()
    assert LatentStatistics.load(Path("runs/one/reference.safetensors")).data["rows"] == len(
        sides(data("folder", tmp_path / "pictures", FIRST))[0]
    )
    with pytest.warns(UserWarning, match="rows have become") as told:
        assert run(tmp_path / "pictures", FIRST | MORE, "--ckpt_path=last", "--trainer.max_steps=3", probed=True) == 0
    messages = [str(each.message) for each in told if "rows have become" in str(each.message)]
    assert len(messages) == 2
    assert any("The data are not those of the checkpoint: " in text and "are gone" not in text for text in messages)
    assert any("reference.safetensors is of the data as they were, and is kept" in text for text in messages)
    assert Path("runs/one/reference.safetensors").read_bytes() == reference
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The data are not|.*as they were")
        data("folder", tmp_path / "pictures", FIRST)
        assert _fit(settings(tmp_path / "pictures"), "--run_dir=runs/two") == 0
        assert (
            _fit(settings(tmp_path / "pictures"), "--run_dir=runs/two", "--ckpt_path=last", "--trainer.max_steps=3")
            == 0
        )


@pytest.mark.parametrize(
    ("names", "arguments", "text"),
    [
        ({f"other{number}.png": number for number in range(100, 160)}, (), "was trained on other data"),
        (FIRST, ("--data.init_args.held_out_fraction=0.6",), "was trained on rows that are held out now"),
    ],
    ids=["other data", "a larger share"],
)
def test_other_data_are_refused_before_anything_is_overwritten(names, arguments, text, tmp_path, capsys):
    assert run(tmp_path / "pictures", FIRST) == 0
    data("folder", tmp_path / "pictures", names)
    capsys.readouterr()
    _refused(capsys, settings(tmp_path / "pictures"), text, arguments=("--ckpt_path=last", *arguments))


def test_a_model_is_not_judged_in_silence_on_rows_that_it_was_trained_on(tmp_path):
    assert run(tmp_path / "pictures", FIRST, "--data.init_args.held_out_fraction=0.02") == 0
    model = load_model(Path("runs/one/checkpoints/last.ckpt"))
    with pytest.warns(UserWarning, match=r"trained on rows of .* that are held out here \(\d+ of 5\d"):
        real_latents(model, str(tmp_path / "pictures"))


def test_a_checkpoint_of_a_run_on_other_loaders_is_gone_on_with_and_told(tmp_path):
    assert run(tmp_path / "pictures", FIRST) == 0
    path = Path("runs/one/checkpoints/last.ckpt")
    torch.save({k: v for k, v in torch.load(path, weights_only=True).items() if k != "ImageData"}, path)
    with pytest.warns(UserWarning, match="does not say what data it was trained on"):
        assert _fit(settings(tmp_path / "pictures"), "--ckpt_path=last", "--trainer.max_steps=3") == 0


def test_a_split_of_its_own_with_copies_of_training_rows_is_gone_on_with(tmp_path):
    table = Dataset.from_dict({"image": [np.asarray(picture(n)) for n in range(20)]})
    for name in ("train", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    found = ready(ImageData(str(tmp_path)))
    with pytest.warns(UserWarning, match="100% of the images of split 'test'"):
        assert found.identity.changes(found.identity.summary()) == []


def test_built_in_data_of_another_size_would_train_on_what_was_held_out_and_is_refused(capsys):
    assert _fit(_config()) == 0
    _refused(
        capsys,
        _config(),
        "rows that are held out now",
        arguments=("--ckpt_path=last", "--data.init_args.dataset_kwargs={num_images: 30, size: 8}"),
    )


def test_other_captions_are_told(tmp_path):
    def captioned(text: str) -> ImageData:
        columns = {
            "image": [np.asarray(picture(n)) for n in range(40)],
            "text": [f"{text} {n}" if n % 2 else "a bird" for n in range(40)],
        }
        Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
        return ready(ImageData(str(tmp_path / "a.parquet"), caption_column="text", check_rows=0))

    before, after = captioned("a dog").identity, captioned("a cat").identity
    (train, held_out) = after.changes(before.summary())
    assert train.endswith("of the training rows have another label or caption")
    assert held_out.endswith("of the held-out rows have another label or caption")
    assert after.changes(yaml.safe_load(yaml.safe_dump(after.summary()))) == []


def test_a_stream_that_goes_on_is_compared_by_its_first_rows(tmp_path):
    first, again, grown, other = (
        data("parquet, streamed", tmp_path / "one", names).identity
        for names in (FIRST, FIRST, FIRST | {f"z{n}": n for n in range(60, 80)}, {str(n): n for n in range(100, 160)})
    )
    assert again.changes(first.summary()) == []
    assert [text for text in grown.changes(first.summary()) if "training" in text] == []
    assert "the stream begins with other training rows" in other.changes(first.summary())
    larger = data("parquet, streamed", tmp_path / "one", FIRST, held_out_fraction=0.7).identity
    with refused("rows that are held out now"):
        larger.changes(first.summary())
