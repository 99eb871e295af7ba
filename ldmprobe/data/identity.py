"""Which rows are which: by the hashes of their images, rows are held out and data sets are told apart.

Rows that are added, renamed or moved never take others to the other side, and copies of one image are on one side
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import xxhash

from ldmprobe.data.column_names import IMAGE_HASH
from ldmprobe.data.columns import Column
from ldmprobe.data.image_files import ImageFiles
from ldmprobe.data.image_hashes import Hashes, image_hash
from ldmprobe.errors import ConfigurationError
from ldmprobe.types import Batch, PlainValues, Rows, is_table

_FEWEST_HELD_OUT = 2  # what a denoising probe needs
_SAMPLED = 256  # rows by which data sets are compared
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so that to multiply by it permutes the hashes

MOST_KNOWN = 0.01
"""The share of held-out images that may be training images: more are no accident."""


# --- held out --------------------------------------------------------------------------------------------------------


def is_held_out(row: Batch, column: str, fraction: float, wanted: bool, files: ImageFiles) -> bool:
    """Return whether a stream's row is held out, or is not (`wanted=False`); with probability `fraction`, by its
    image.
    """
    return (image_hash(row[column], files) < _threshold(fraction)) == wanted


def held_out_mask(hashes: Hashes, fraction: float) -> np.ndarray:
    """Return which rows are held out, shape (N,): each with probability `fraction`, always the same for one image.

    At least the two of the smallest hashes are (one, of fewer than four rows), and not all. Rows that are added take
    none that was trained on to the held-out side, unless all had a hash below the share.

    Raises:
        ConfigurationError: there are not two different images.
    """
    fewest = min(_FEWEST_HELD_OUT if len(hashes) >= 2 * _FEWEST_HELD_OUT else 1, len(hashes) - 1)
    mask = (hashes < np.uint64(_threshold(fraction))) | (hashes <= np.sort(hashes)[max(0, fewest - 1)])
    if mask.all():
        mask = hashes < hashes.max()
    if not mask.any():
        raise ConfigurationError(
            f"All {len(hashes)} rows have the same image, so that none can be held out; name a split of other images "
            "as `held_out_split`."
        )
    return mask


def _threshold(fraction: float) -> int:
    return int(fraction * 2**64)


# --- what data -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownRows:
    """The rows of a split, known by hashes.

    Attributes:
        images: of each row.
        columns: of each row's further columns, such as label and caption, by their names in batches.
        complete: whether these are all rows; of a stream they are its first.
    """

    images: Hashes
    columns: dict[str, Hashes]
    complete: bool = True

    @property
    def texts(self) -> Hashes:
        """One hash for each row's further columns."""
        texts = np.zeros(len(self.images), np.uint64)
        for hashes in self.columns.values():
            texts = texts * _MIX + hashes
        return texts

    def summary(self) -> PlainValues:
        """Plain values for checkpoints and files: number, a hash of all, and a sample: the same rows in any order."""
        texts = self.texts
        images, first = np.unique(self.images, return_index=True)
        chosen = np.argsort(images * _MIX)[:_SAMPLED]
        return {
            "rows": len(self.images),
            "all": xxhash.xxh3_64_hexdigest(self.images.tobytes() + texts.tobytes()),
            "sample": images[chosen].tolist(),
            "texts": texts[first[chosen]].tolist(),
        }

    def has(self, sample: Hashes) -> np.ndarray:
        """Return which of these images are among the rows."""
        return np.isin(sample, self.images)

    def changes(self, theirs: PlainValues, name: str, if_none: str | None = None) -> list[str]:
        """Return how these rows differ from those of a summary, in words.

        Args:
            if_none: raised as a ConfigurationError where none of theirs is among these any more.
        """
        ours = self.summary()
        if (ours["rows"], ours["all"]) == (theirs["rows"], theirs["all"]):
            return []
        sample = np.array(theirs["sample"], np.uint64)
        there = self.has(sample)
        if not self.complete:
            return [] if there.all() else [f"the stream begins with other {name} rows"]
        if if_none is not None and len(sample) and not there.any():
            raise ConfigurationError(if_none)
        told = []
        if ours["rows"] != theirs["rows"]:
            told.append(f"{theirs['rows']:,} {name} rows have become {ours['rows']:,}")
        if not there.all():
            told.append(f"{np.mean(~there):.0%} of the {name} rows then are gone")
        order = np.argsort(self.images, kind="stable")
        place = order[np.searchsorted(self.images, sample[there], sorter=order)]
        others = self.texts[place] != np.array(theirs["texts"], np.uint64)[there]
        if others.any():
            told.append(f"{np.mean(others):.0%} of the {name} rows have another label or caption")
        return told or [f"some {name} rows are others, or in another order"]


@dataclass(frozen=True)
class DataIdentity:
    """What tells the data of a run from others: its training rows and its held-out rows."""

    train: KnownRows
    held_out: KnownRows

    @property
    def repeated(self) -> float:
        """The share of held-out rows whose image is a training image, too."""
        return float(self.train.has(self.held_out.images).mean())

    def summary(self) -> PlainValues:
        """Plain values, for checkpoints."""
        return {"train": self.train.summary(), "held_out": self.held_out.summary()}

    def changes(self, theirs: PlainValues) -> list[str]:
        """Return how these data differ from those of a summary, in words.

        Raises:
            ConfigurationError: rows that were trained on are held out now, or none of them is there any more.
        """
        if theirs == self.summary():
            return []
        advice = "Give the data and settings that it was trained with, or start a new run in another directory."
        if moved := self.trained_on(theirs):
            raise ConfigurationError(f"The checkpoint was trained on rows that are held out now ({moved}). {advice}")
        told = self.train.changes(theirs["train"], "training", f"The checkpoint was trained on other data. {advice}")
        told += self.held_out.changes(theirs["held_out"], "held-out")
        before = np.array(theirs["held_out"]["sample"], np.uint64)
        number = int((self.train.has(before) & ~self.held_out.has(before)).sum())
        if number and self.train.complete:
            told.append(f"{number / len(before):.0%} of the held-out rows then are trained on now")
        return told

    def has_training_rows_of(self, theirs: PlainValues) -> bool:
        """Return whether the images that a checkpoint's summary has on the training side are those on it now, by their
        number and those that are looked up.
        """
        train = theirs["train"]
        return train["rows"] == len(self.train.images) and bool(
            self.train.has(np.array(train["sample"], np.uint64)).all()
        )

    def trained_on(self, theirs: PlainValues) -> str | None:
        """Return how many rows that a checkpoint's summary has on the training side are on the held-out side now, in
        words.
        """
        sample = np.array(theirs["train"]["sample"], np.uint64)
        moved = int((self.held_out.has(sample) & ~self.train.has(sample)).sum())
        return (
            f"{moved} of {len(sample)} that were looked up, so that held-out numbers would flatter it"
            if moved
            else None
        )


def known_rows(rows: Rows, columns: Sequence[Column], files: ImageFiles) -> KnownRows:
    """Return the hashes of a table's rows, or of a stream's first; the first of `columns` has the images."""
    from datasets import Dataset

    complete = is_table(rows)
    if not complete:
        rows = Dataset.from_list(list(islice(rows, _SAMPLED)), features=rows.features)
    image, *others = columns
    if IMAGE_HASH in rows.column_names:  # known since the rows were divided
        images = np.asarray(rows.with_format("numpy")[IMAGE_HASH][:], np.uint64)
    else:
        images = image.hashes(rows, files)
    return KnownRows(images, {column.name: column.hashes(rows, files) for column in others}, complete)
