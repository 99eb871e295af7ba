"""Where images come from: built in, a folder, a file, or the Hugging Face hub. Every failure says what to write
instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ldmprobe.data.builtin import load_builtin
from ldmprobe.data.column_names import IMAGE_HASH, OWN, ROW_NUMBER
from ldmprobe.data.columns import Column
from ldmprobe.data.folders import is_image_folder, with_captions
from ldmprobe.data.identity import held_out_mask, is_held_out
from ldmprobe.data.image_files import ImageFiles
from ldmprobe.errors import ConfigurationError
from ldmprobe.types import PlainValues, Rows, is_table

HELD_OUT_NAMES = ("validation", "valid", "val", "test")
_SPLIT_SEED = 20_26  # of the held-out rows of built-in data; part of every run's comparability
_SHARDS = 4  # of a stream of built-in data
_RESERVED = ("index", "latent", "moments", "condition", "observed")  # names in batches that no column may have


def load_splits(dataset: str, streaming: bool = False, **kwargs: Any) -> PlainValues:
    """The splits of a dataset by name, without a format that was set on them.

    Args:
        dataset: "builtin:digits", "builtin:shapes" or "builtin:gaussian"; a folder (from `save_to_disk`, of parquet
            files, or of images, whose captions may be in text files beside them: column "text"); a parquet file; or a
            hub id.
        streaming: read rows as they are needed instead of preparing the dataset on disk; built-in data is never there,
            and stays a table.
        kwargs: parameters of the built-in dataset, or of `datasets.load_dataset`.

    Raises:
        ConfigurationError: nothing there, or nothing that can be read without running code or unpickling.
    """
    if dataset == "pandas" or kwargs.get("trust_remote_code"):
        raise ConfigurationError(
            f"Dataset {dataset!r} would be read by running code that comes with it, or from pickles, which is the "
            "same; convert it to parquet and give the parquet file."
        )
    if dataset.startswith("builtin:"):
        return {"train": load_builtin(dataset.removeprefix("builtin:"), **kwargs)}

    from datasets import Dataset, IterableDataset, load_dataset, load_from_disk

    path = Path(dataset).expanduser()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = load_from_disk(str(path))
            if streaming:
                raise ConfigurationError(
                    f"{dataset} was written by save_to_disk and is memory-mapped as it is; leave out `streaming`."
                )
        elif path.suffix == ".parquet" and path.is_file():
            loaded = load_dataset("parquet", data_files={"train": str(path)}, streaming=streaming, **kwargs)
        elif path.is_dir() and "data_files" not in kwargs and is_image_folder(path / kwargs.get("data_dir", "")):
            place = {**kwargs, "data_dir": str(path / kwargs.get("data_dir", ""))}
            loaded = load_dataset("imagefolder", streaming=streaming, **place)
            if isinstance(loaded, dict):
                loaded = {name: with_captions(rows) for name, rows in loaded.items()}
        else:
            loaded = load_dataset(str(path) if path.exists() else dataset, streaming=streaming, **kwargs)
    except ConfigurationError:
        raise
    except Exception as error:  # the datasets library raises many kinds, all meaning "not loadable"
        where = (
            "holds no dataset that can be read" if path.exists() else "is no folder here and was not found on the hub"
        )
        raise ConfigurationError(
            f"Dataset {dataset!r} {where} ({type(error).__name__}: {_first_line(error)}). Expected a hub id, a folder "
            "of parquet files, a folder from save_to_disk, an image folder, or builtin:digits, builtin:shapes, "
            "builtin:gaussian."
        ) from error
    splits = {"train": loaded} if isinstance(loaded, (Dataset, IterableDataset)) else dict(loaded)
    return {name: rows.with_format(None) for name, rows in splits.items()}


def check_splits(splits: PlainValues, *names: str | None) -> None:
    """Raise ConfigurationError if one of the named splits is not there."""
    for name in names:
        if name is not None and name not in splits:
            raise ConfigurationError(f"There is no split {name!r}; the dataset has {', '.join(map(repr, splits))}.")


def held_out_name(splits: PlainValues, train_split: str, held_out_split: str | None) -> str | None:
    """The split to hold out: the named one, else one of a usual name; None where a part of the training split is
    taken.
    """
    if held_out_split is not None:
        return held_out_split
    return next((name for name in HELD_OUT_NAMES if name in splits and name != train_split), None)


def choose_splits(
    splits: PlainValues,
    train_split: str,
    held_out_split: str | None,
    held_out_fraction: float,
    held_out_rows: int,
    image: Column,
    files: ImageFiles,
    fixed: bool = False,
    streaming: bool = False,
) -> tuple[Rows, Rows]:
    """Return training and held-out rows.

    Where no split is named for holding out and none has a usual name, a part of the training split is taken: each row
    with probability `held_out_fraction`, by a hash of its image, so that it stays on its side whatever rows are added,
    and copies of one image are on one side. Both sides are in the order of the hashes.

    Args:
        held_out_rows: of a stream at most so many are held out; what it has more of them is left aside.
        image: the column of images.
        files: the files that rows may name.
        fixed: the rows never change (built-in data): exactly `held_out_fraction` of them are taken, by their numbers,
            or the first `held_out_rows` of a stream.
        streaming: training rows are to be a stream, also those of a table.

    Raises:
        ConfigurationError: a named split does not exist, or one is empty; there are not two different images.
    """
    check_splits(splits, train_split, held_out_split)
    held_out_split = held_out_name(splits, train_split, held_out_split)
    train = splits[train_split]
    if held_out_split is not None:
        held_out = splits[held_out_split]
    elif fixed and streaming:  # of a stream, each rank and worker would leave out other rows
        number = min(held_out_rows, len(train))
        train, held_out = train.skip(number), train.take(number)
    elif is_table(train):
        train, held_out = _held_out_of_table(train, train_split, held_out_fraction, image, files, fixed)
    else:
        train, held_out = _held_out_of_stream(train, held_out_fraction, held_out_rows, image, files)
    for name, rows in ((train_split, train), (held_out_split or "held-out", held_out)):
        if is_table(rows) and len(rows) == 0:
            raise ConfigurationError(f"Split {name!r} is empty.")
    if streaming and is_table(train):
        train = train.to_iterable_dataset(min(_SHARDS, len(train)))
    return train, held_out


def _held_out_of_table(
    rows: Rows, name: str, fraction: float, image: Column, files: ImageFiles, fixed: bool
) -> tuple[Rows, Rows]:
    if len(rows) < 2:
        raise ConfigurationError(
            f"Split {name!r} has {len(rows)} row(s); expected at least 2, one of them to hold out."
        )
    check_column(image.column, rows.column_names)
    numbered = rows.add_column(ROW_NUMBER, np.arange(len(rows)))  # so that messages name rows of the dataset
    if fixed:
        size = min(len(rows) - 1, max(1, round(fraction * len(rows))))
        parts = numbered.train_test_split(test_size=size, seed=_SPLIT_SEED)
        return parts["train"], parts["test"]
    hashes = image.hashes(numbered, files)
    numbered = numbered.add_column(IMAGE_HASH, hashes)
    order = np.argsort(hashes, kind="stable")
    held_out = held_out_mask(hashes, fraction)[order]
    return numbered.select(order[~held_out]), numbered.select(order[held_out])


def _held_out_of_stream(rows: Rows, fraction: float, most: int, image: Column, files: ImageFiles) -> tuple[Rows, Rows]:
    from datasets import Dataset

    check_column(image.column, rows.column_names or list(next(iter(rows), {})))
    train, held_out = (
        rows.filter(
            is_held_out, fn_kwargs={"column": image.column, "fraction": fraction, "wanted": wanted, "files": files}
        )
        for wanted in (False, True)
    )
    taken = list(islice(held_out, most))
    if not taken:
        raise ConfigurationError(
            f"The held-out part of the stream is empty: each row is held out with probability {fraction}, and none is. "
            "Set a larger `held_out_fraction`, or leave out `streaming`."
        )
    return train, Dataset.from_list(taken, features=rows.features)


def check_column(column: str, columns: list[str]) -> None:
    """Raise ConfigurationError if a dataset of these columns lacks `column`."""
    if column not in columns:
        names = ", ".join(repr(name) for name in columns if name not in OWN)
        raise ConfigurationError(f"There is no column {column!r}; the dataset has {names}.")


def check_names(image: Column, others: Sequence[Column], further: Sequence[Column]) -> None:
    """Raise ConfigurationError where two columns have one name, or one has a name of ldmprobe's own.

    Args:
        others: labels and captions.
        further: the data's `columns`.
    """
    named = [column.column for column in (image, *others)]
    if len(set(named)) < len(named):
        raise ConfigurationError(
            f"ImageData got the columns {', '.join(map(repr, named))} for images, labels and captions; expected "
            "another column for each, or null for labels or captions that are not there."
        )
    names = [column.name for column in (image, *others, *further)]
    if taken := [name for name in names if names.count(name) > 1 or name in _RESERVED]:
        raise ConfigurationError(
            f"ImageData got several columns that batches would call {taken[0]!r}, or its own name for something else; "
            "give each of `columns` a `name` of its own."
        )
    if own := [column.column for column in (image, *others, *further) if column.column in OWN]:
        raise ConfigurationError(f"ImageData got a column called {own[0]!r}, a name of its own; rename it.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:300]


def only(rows: Rows, columns: Sequence[Column]) -> Rows:
    """Return the rows with these columns alone, and those of `OWN` that they have."""
    own = (name for name in rows.column_names or [] if name in OWN)
    return rows.select_columns(list(dict.fromkeys([*(column.column for column in columns), *own])))


def without_own(rows: Rows) -> Rows:
    """Return the rows without columns that happen to have a name of `OWN`."""
    names = [name for name in rows.column_names or [] if name in OWN]
    return rows.remove_columns(names) if names else rows
