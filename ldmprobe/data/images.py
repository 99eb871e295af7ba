"""ImageData: a LightningDataModule over any Hugging Face dataset of images.

More than 300 lines, a third of which are what a configuration can say of its data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from ldmprobe import lightning_private as private
from ldmprobe.data.checked import CheckedRows, check_captions
from ldmprobe.data.classes import class_names
from ldmprobe.data.columns import CaptionColumn, Column, ImageColumn, LabelColumn
from ldmprobe.data.endless import check_epochs
from ldmprobe.data.identity import MOST_KNOWN, DataIdentity, known_rows
from ldmprobe.data.image_files import files_of
from ldmprobe.data.latent_cache import SPLITS, LatentCache, LatentRows, cache_key
from ldmprobe.data.rows import RowReader
from ldmprobe.data.sources import (
    check_column,
    check_names,
    check_splits,
    choose_splits,
    held_out_name,
    load_splits,
    only,
    without_own,
)
from ldmprobe.data.stream import (
    HubStream,
    Reader,
    RowsInFixedOrder,
    ShuffledStream,
    SkippingLoader,
    StreamPositions,
    at_places,
    in_fixed_order,
)
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import Conditioning
from ldmprobe.types import Batch, PlainValues, Rows, StateDict

_TEST = "test"  # the split of that name, where it is neither trained on nor held out


class ImageData(L.LightningDataModule):
    """Images (with labels, captions) from any Hugging Face dataset, as batches in [−1, 1].

    Training is one endless epoch in which batch k depends on (seed, k) alone: limit it by `max_steps`, not
    `max_epochs`, and validate by `val_check_interval` in batches. With `limit_train_batches: N` an epoch is said to end
    after each N batches, and the next goes on from there; with `overfit_batches: N` all epochs are of the same N.

    Batches are dicts: `image` (N, C, H, W) float32, `index` (N,) the row, and `label` (N,), `caption` if their
    columns are named, and the further columns. From a cache they have `latent` (N, c, h, w) or `moments` (N, 2c, h, w)
    instead of `image`, and `condition`, a dict of tensors, where the captions are encoded too.

    Args:
        dataset: hub id; folder of parquet files, from `save_to_disk`, or of images; parquet file; "builtin:digits",
            "builtin:shapes" or "builtin:gaussian".
        dataset_kwargs: further arguments of `datasets.load_dataset` (`name`, `revision`, `data_files`, …) or parameters
            of the built-in dataset.
        image_column, label_column, caption_column: names of columns; the latter two are optional. Images may be stored
            as images, bytes, paths in the dataset's folder, or arrays. Of a list of captions each visit of training
            draws one, and probes take the first. A folder of images with `1.txt` beside `1.png` has these texts in the
            column "text".
        columns: further columns that conditionings read, such as a `MaskColumn`; each is cropped and mirrored with
            the image.
        train_split: name of the training split.
        held_out_split: name of the held-out split. Default: "validation" or "test" where there is one, else a part of
            the training rows: each with probability `held_out_fraction`, by a hash of its image as it is stored. So a
            row stays on its side when others are added, renamed or moved, and copies of an image are on one side.
        held_out_fraction: the expected share of rows held out: of N rows N·f ± 2 √(N f (1 − f)), but two at least (one,
            of fewer than four rows). Of built-in data it is exact.
        held_out_rows: the most that are held out of a stream, whose further rows of that share are left aside. Of
            built-in data it is exact.
        image_size: images become square of this many pixels; default: they all have one size already.
        channels: 1, 3 or 4; default: those of the first image.
        background: the color under transparent images (a name or "#rrggbb"), unless `channels` is 4.
        value_range: the numbers that are black and white, [low, high], in arrays and in gray images of 16 and 32 bits.
            Default: what their type says; arrays of floats that are not pixels are taken as they are.
        image_folder: the folder that a table's paths are in; default: that of the dataset. Files elsewhere are not
            read.
        resize: "crop" scales the short side and crops the long one, "squash" ignores the aspect ratio.
        random_crop, random_flip: augmentation of training images; crops need `image_size`. Images whose captions tell
            left from right are not flipped.
        batch_size: per rank.
        num_workers: processes that decode images.
        streaming: read rows as needed, for what does not fit on disk; shuffled through `shuffle_buffer` rows.
        num_classes: for label columns that do not say (a stream's integer column).
        check_rows: how many rows of each split are decoded before training, to find unreadable images early; one at
            least, whose shape is known then.
        seed: of the order and augmentation of training images.
        latents: folder that `ldmprobe cache` has made for this configuration: batches are read from it, in the same
            order.

    Attributes:
        rows: the dataset's rows, "train" and "held_out"; none before `setup`.
        checked_captions: of the rows that were decoded before training.

    Raises:
        ConfigurationError: in `setup`, before training: no such dataset, split or column; no rows; unreadable image.
    """

    def __init__(
        self,
        dataset: str,
        dataset_kwargs: dict[str, bool | int | float | str | list | dict | None] | None = None,
        image_column: str = "image",
        label_column: str | None = None,
        caption_column: str | None = None,
        train_split: str = "train",
        held_out_split: str | None = None,
        held_out_fraction: float = 0.1,
        held_out_rows: int = 1000,
        image_size: int | None = None,
        channels: int | None = None,
        resize: Literal["crop", "squash"] = "crop",
        random_crop: bool = False,
        random_flip: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        streaming: bool = False,
        shuffle_buffer: int = 1000,
        num_classes: int | None = None,
        check_rows: int = 500,
        seed: int = 0,
        latents: str | None = None,
        background: str = "white",
        value_range: tuple[float, float] | None = None,
        image_folder: str | None = None,
        columns: list[Column] | None = None,
    ) -> None:
        super().__init__()
        check_numbers("ImageData", 1, batch_size=batch_size, held_out_rows=held_out_rows, shuffle_buffer=shuffle_buffer)
        check_numbers("ImageData", 1, image_size=image_size, num_classes=num_classes)
        check_numbers("ImageData", 0, num_workers=num_workers, check_rows=check_rows, seed=seed)
        if not 0 < held_out_fraction < 1:
            raise ConfigurationError(
                f"ImageData got held_out_fraction {held_out_fraction}; expected a number in (0, 1)."
            )
        if random_crop and (image_size is None or resize != "crop"):
            raise ConfigurationError(
                f"ImageData got random_crop with image_size {image_size} and resize {resize!r}, with which nothing is "
                "cropped; set `image_size` and `resize: crop`, or leave out `random_crop`."
            )
        image = ImageColumn(
            image_column,
            channels=channels,
            background=background,
            value_range=None if value_range is None else (float(value_range[0]), float(value_range[1])),
        )
        others: list[Column] = [] if label_column is None else [LabelColumn(label_column, num_classes=num_classes)]
        others += [] if caption_column is None else [CaptionColumn(caption_column)]
        check_names(image, others, columns or [])
        self.dataset, self.dataset_kwargs = dataset, dataset_kwargs or {}
        self.train_split, self.held_out_split = train_split, held_out_split
        self.held_out_fraction, self.held_out_rows = held_out_fraction, held_out_rows
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.streaming, self.shuffle_buffer, self.check_rows = streaming, shuffle_buffer, check_rows
        self.reader = RowReader(image, (*others, *(columns or [])), image_size, resize, random_crop, random_flip)
        self.image_folder = image_folder
        self.latents = latents
        self.num_classes = num_classes
        self.image_shape: tuple[int, ...] = ()
        self.checked_captions: list[str] = []
        self.held_out_reader = self.reader
        self._without_range = {
            column.name
            for column in self.reader.columns
            if isinstance(column, ImageColumn) and column.value_range is None
        }
        self.rows: dict[str, Rows] = {}
        self._test: Rows = None
        self._cache: LatentCache | None = None

    def prepare_data(self) -> None:
        """Downloads once per node, before ranks load it. Built-in data is made where it is used."""
        if not self.dataset.startswith("builtin:"):
            load_splits(self.dataset, streaming=self.streaming, **self.dataset_kwargs)

    def setup(self, stage: str | None = None) -> None:
        if self.rows:
            return
        if self.trainer is not None and self.trainer.state.fn == "fit":
            check_epochs(self.trainer)
        splits = load_splits(self.dataset, streaming=self.streaming, **self.dataset_kwargs)
        check_splits(splits, self.train_split, self.held_out_split)
        splits = {name: self.reader.undecoded(without_own(rows)) for name, rows in splits.items()}
        files = files_of(self.dataset, self.dataset_kwargs, splits[self.train_split], self.image_folder)
        train, held_out = choose_splits(
            splits,
            self.train_split,
            self.held_out_split,
            self.held_out_fraction,
            self.held_out_rows,
            self.reader.image,
            files,
            fixed=self.dataset.startswith("builtin:"),
            streaming=self.streaming,
        )
        held_out_split = held_out_name(splits, self.train_split, self.held_out_split) or self.train_split
        for rows in (train, held_out):
            for column in self.reader.columns:
                check_column(column.column, rows.column_names or list(next(iter(rows), {})))
        train, held_out = (only(rows, self.reader.columns) for rows in (train, held_out))
        self.rows = dict(zip(SPLITS, (train, held_out), strict=True))
        self._test = splits.get(_TEST) if _TEST not in (self.train_split, held_out_split) else None
        named = ((self.train_split, train), (held_out_split, held_out))
        self.reader = self.reader.informed(named, files, "Streamed image" if self.streaming else "Row")
        self.held_out_reader = replace(self.reader, split=held_out_split)
        if (labels := self.reader.column_called("label")) is not None:
            self.num_classes = labels.classes
        if self.latents is not None:
            self.check_cacheable()
            self._cache = LatentCache(Path(self.latents))
            self._cache.check_complete()
            self.image_shape = self._cache.image_shape
            return
        read = ((train, self.reader, "training"), (held_out, self.held_out_reader, "held-out"))
        for rows, reader, kind in read:
            checked = CheckedRows.read(islice(rows, max(1, self.check_rows)), reader, kind)
            self.image_shape = checked.check(self.image_shape, self._without_range if rows is train else ())
            self.checked_captions += checked.captions
        check_captions(self.checked_captions, self.reader.random_flip)

    @cached_property
    def identity(self) -> DataIdentity:
        """Return what tells these rows from others, known after `setup`. Of two splits that share images it is told."""
        reader, held_out = self.reader, self.held_out_reader.split
        found = DataIdentity(*(known_rows(self.rows[split], reader.columns, reader.files) for split in SPLITS))
        if held_out != reader.split and found.repeated > MOST_KNOWN:
            rank_zero_warn(
                f"{found.repeated:.0%} of the images of split {held_out!r}, which is held out, are in split "
                f"{reader.split!r}, too, which is trained on: held-out numbers flatter the model. Name a split of "
                "other images as the data's `held_out_split`."
            )
        return found

    def state_dict(self) -> StateDict:
        """Return what data a checkpoint is of."""
        return self.identity.summary() if self.rows else {}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Compare the data that a checkpoint was trained on with these, where training goes on from it.

        Raises:
            ConfigurationError: rows that were trained on are held out now, or none of them is there any more.
        """
        going_on = self.trainer is not None and self.trainer.state.fn == "fit"
        if going_on and state_dict and (told := self.identity.changes(state_dict)):
            rank_zero_warn(
                f"The data are not those of the checkpoint: {'; '.join(told)}. Training goes on with these from here "
                "on, in an order of their own; held-out numbers before and after are of different rows where those "
                "differ."
            )

    def reader_of(self, split: str) -> RowReader:
        """The reader of one of `SPLITS`."""
        return self.reader if split == "train" else self.held_out_reader

    @property
    def batch_names(self) -> tuple[str, ...]:
        """The names in batches of images."""
        return ("index", *(column.name for column in self.reader.columns))

    def check_cacheable(self) -> None:
        """Raise ConfigurationError if what training sees of this data cannot be encoded beforehand."""
        if self.streaming:
            raise ConfigurationError(
                "A stream's rows have no numbers to keep their latents by; leave out the data's `streaming`."
            )
        if self.reader.random_crop:
            raise ConfigurationError(
                "Each pass crops anew (`random_crop`), so that latents cannot be encoded beforehand; leave it out "
                "(`random_flip` can stay: both views are kept)."
            )

    def use_latents(self, codec: LatentCodec, conditioning: Conditioning) -> None:
        """Raise ConfigurationError, naming what differs, if `latents` are not those of this data, codec and
        conditioning; else tell the conditioning what they have of its prompts. Where there are none, do nothing.
        """
        if self._cache is not None:
            self._cache.check_key(
                cache_key(self.identity, self.rows, self.reader, codec, conditioning, self._cache.dtype)
            )
            if (encoder := conditioning.frozen_encoder) is not None:
                encoder.kept |= self._cache.prompts(encoder.asked)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, where the dataset has them."""
        labels = self.reader.column_called("label")
        return class_names(self.rows["train"], labels.column) if labels and self.rows else None

    def _read_from(self, split: str) -> tuple[Rows, Reader]:
        """Return rows, and their reader: those of `latents` where there are any."""
        if self._cache is None:
            return self.rows[split], self.reader_of(split)
        latents = LatentRows(self._cache, split, self.reader)
        return latents, latents

    def train_dataloader(self) -> Rows:
        trainer = self.trainer
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        workers: PlainValues = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        if not self.streaming:
            stream = ShuffledStream(*self._read_from("train"), self.seed)
            positions = StreamPositions(self.batch_size, self._next_batch, rank, world_size)
            return DataLoader(stream, sampler=positions, batch_size=None, **workers)
        from datasets.distributed import split_dataset_by_node

        rows = split_dataset_by_node(self.rows["train"], rank=rank, world_size=world_size)
        endless = HubStream(rows, self.reader, self.seed, self.batch_size, self.shuffle_buffer, rank)
        return SkippingLoader(DataLoader(endless, batch_size=None, **workers), self._next_batch)

    def _next_batch(self) -> int:
        """The number in the stream of the batch that an epoch begins with, or goes on with after a resume."""
        if self.trainer is None:
            return 0
        processed, period = private.batches_processed(self.trainer), int(private.overfit_batches(self.trainer))
        return processed % period if period else processed

    def val_dataloader(self) -> DataLoader:
        return self._in_fixed_order(*self._read_from("held_out"))

    def test_dataloader(self) -> DataLoader:
        """The split "test" where it is neither trained on nor held out, else what is held out.

        Raises:
            ConfigurationError: there is that split, and `latents`, which have none of it.
        """
        if self._test is None:
            return self.val_dataloader()
        if self._cache is not None:
            raise ConfigurationError(
                "`latents` are of the training and held-out splits, and the dataset has a split 'test' beside them; "
                "leave `latents` out to measure that one, or run `ldmprobe validate`."
            )
        reader = replace(self.held_out_reader, split=_TEST)
        return self._in_fixed_order(only(self._test, reader.columns), reader)

    def _in_fixed_order(self, rows: Rows, reader: Reader) -> DataLoader:
        return DataLoader(RowsInFixedOrder(rows, reader), batch_size=self.batch_size, collate_fn=reader.collate)

    def reference_batches(self, num_images: int, held_out: bool = False) -> Iterator[Batch]:
        """`num_images` training (or held-out) images, or all there are, drawn in a fixed order that no seed changes,
        without augmentation: what probes compare with. The same on every rank. (Of a stream's training images: the
        first.)
        """
        return in_fixed_order(*self._read_from(SPLITS[held_out]), num_images)

    def reference_images(self, num_images: int, held_out: bool = False) -> Iterator[Batch]:
        """The same, always with `image`."""
        split = SPLITS[held_out]
        return in_fixed_order(self.rows[split], self.reader_of(split), num_images)

    def training_images_at(self, places: Sequence[int]) -> Batch:
        """Return the training images of these places among `reference_images`, without reading others."""
        return at_places(self.rows["train"], self.reader_of("train"), places)
