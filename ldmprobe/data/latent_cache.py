"""Latents encoded once and kept on disk: the folder's key, its files and its reader. `ldmprobe cache` writes it.

`cache.json` says what the folder is of and how many rows it has; `train-00000.safetensors`, … and `held_out-…` have so
many rows each, with all columns and what a frozen encoder makes of their captions; `prompt-…` has what it makes of a
prompt, or of none.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldmprobe.data.column_names import ROW_NUMBER
from ldmprobe.data.identity import DataIdentity
from ldmprobe.data.rows import RowReader
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.difference import first_difference
from ldmprobe.io.digest import fingerprint, weights_fingerprint
from ldmprobe.io.tensor_file import read_tensors, readable
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import Conditioning
from ldmprobe.models.denoiser import Condition
from ldmprobe.types import Batch, PlainValues

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SPLITS = ("train", "held_out")
CONDITION, OBSERVED = "condition.", "observed."
"""What the names of an encoder's results, and of what a conditioning takes of images, in a file begin with."""
_FORMAT = 6  # since 6, each file has what an encoder makes of its own captions


def cache_key(
    identity: DataIdentity, rows: Batch, reader: RowReader, codec: LatentCodec, conditioning: Conditioning, dtype: str
) -> PlainValues:
    """Return all that cached latents depend on, as plain values by part, for both the writer and the reader of a cache.

    Of the data these are a hash of each row (`ldmprobe.data.identity`) and its number. The codec's scale and shift are
    no part: latents are kept before them.

    Args:
        rows: the rows of each of `SPLITS`.
        conditioning: ready for the network and the data (`Conditioning.prepare`).
    """
    description = {name: value for name, value in codec.description.items() if name not in ("scale", "shift")}
    encoder = conditioning.frozen_encoder
    key = {
        "format": _FORMAT,
        "data": {
            split.replace("_", "-"): {
                "number of rows": len(known.images),
                "images": fingerprint(known.images),
                **{name: fingerprint(hashes) for name, hashes in known.columns.items()},
                "row numbers": fingerprint(np.asarray(rows[split].with_format("numpy")[ROW_NUMBER][:]))
                if ROW_NUMBER in rows[split].column_names
                else None,
            }
            for split, known in zip(SPLITS, (identity.train, identity.held_out), strict=True)
        },
        "transforms": {
            "size": reader.size,
            "resize": reader.resize,
            "random_flip": reader.random_flip,
            **{column.name: column.key for column in reader.columns},
        },
        "codec": description | {"weights": weights_fingerprint(weight for _, weight in codec.weights())},
        "latents": {"kind": codec.unscaled_kind, "dtype": dtype},
        "encoder": encoder
        and encoder.encoder_key | {"weights": weights_fingerprint(weight for _, weight in conditioning.weights())},
    }
    if observation := conditioning.observation_key:
        key["observed"] = observation
    return json.loads(json.dumps(key, default=str))


def _difference(theirs: PlainValues, ours: PlainValues) -> str | None:
    """Return what is not the same in two keys, in words."""
    match theirs.get("encoder") is None, ours["encoder"] is None:
        case False, True:
            return "the captions were encoded there; here the text encoder is trained, or there is none"
        case True, False:
            return "the captions were not encoded there; here the text encoder is frozen"
    difference = first_difference(theirs, ours)
    return difference and f"its {difference}"


class Shard(NamedTuple):
    """One file: rows `start` … `stop − 1` of a split."""

    split: str
    start: int
    stop: int
    path: Path


class LatentCache:
    """A folder of latents.

    Attributes:
        key: what they are of, see `cache_key`.
        num_rows: the number of rows of each split.
        rows_per_shard: the number of rows in each file but a split's last.
        image_shape: (C, H, W) of the images.

    Raises:
        ConfigurationError: the folder is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            description = json.loads(self.description_path(folder).read_text())
            self.key: PlainValues = description["key"]
            self.num_rows: dict[str, int] = description["num_rows"]
            self.rows_per_shard: int = description["rows_per_shard"]
            self.image_shape: tuple[int, ...] = tuple(description["image_shape"])
        except Exception as error:  # no folder, no file, no JSON, another JSON: all mean the same
            raise ConfigurationError(
                f"{folder} is no cache of latents ({type(error).__name__}: {error}); `ldmprobe cache --config "
                f"YOURS.yaml --out {folder}` makes one there."
            ) from error

    @staticmethod
    def description_path(folder: Path) -> Path:
        return folder / "cache.json"

    @property
    def dtype(self) -> str:
        return self.key["latents"]["dtype"]

    def shards(self, split: str | None = None) -> list[Shard]:
        """Return all files that there are when the cache is complete."""
        size = self.rows_per_shard
        return [
            Shard(name, start, min(start + size, number), self.folder / f"{name}-{start // size:05d}.safetensors")
            for name, number in self.num_rows.items()
            if split in (None, name)
            for start in range(0, number, size)
        ]

    def prompt_path(self, prompt: str | None) -> Path:
        """Return the file of a prompt of probes and samples, or of none, which may be there: it is no part of the
        key.
        """
        return self.folder / f"prompt-{fingerprint(prompt)}.safetensors"

    def prompts(self, prompts: Sequence[str | None]) -> dict[str | None, Condition]:
        """Return the conditions, of shape (1, …), of the prompts, None for no prompt, that are there; a warning names
        the others.

        Raises:
            ConfigurationError: a file is damaged.
        """
        paths = {prompt: self.prompt_path(prompt) for prompt in prompts}
        if missing := [prompt for prompt, path in paths.items() if not path.is_file()]:
            warnings.warn(
                f"{self.folder} lacks "
                f"{', '.join('the null condition' if each is None else repr(each) for each in missing)}, so that the "
                f"text encoders are loaded; `ldmprobe cache --config YOURS.yaml --out {self.folder}` adds what is "
                "missing.",
                stacklevel=2,
            )
        return {prompt: _read(path)[0] for prompt, path in paths.items() if path.is_file()}

    def check_key(self, key: PlainValues) -> None:
        """Raise ConfigurationError, naming what differs, where these are latents of something else."""
        difference = _difference(self.key, key)
        if difference is not None:
            raise ConfigurationError(
                f"{self.folder} holds latents of something else: {difference}. `ldmprobe cache --config YOURS.yaml "
                "--out ANOTHER_FOLDER` makes those of this configuration."
            )

    def check_complete(self) -> None:
        """Raise ConfigurationError where files are missing."""
        shards = self.shards()
        missing = [shard for shard in shards if not shard.path.is_file()]
        if missing:
            raise ConfigurationError(
                f"{self.folder} is not complete: {len(missing)} of {len(shards)} files are missing, such as "
                f"{missing[0].path.name}; `ldmprobe cache --config YOURS.yaml --out {self.folder}` finishes it."
            )


class LatentRows:
    """The rows of a split, memory-mapped: rows and their reader at once, as `ShuffledStream` takes them.

    Args:
        reader: reads the same columns of images.
    """

    def __init__(self, cache: LatentCache, split: str, reader: RowReader) -> None:
        self.shards, self.reader = cache.shards(split), reader
        self.rows_per_shard, self.num_rows = cache.rows_per_shard, cache.num_rows[split]
        self.kind = cache.key["latents"]["kind"]
        self._open: dict[int, tuple[dict[str, Tensor], PlainValues]] = {}

    def __len__(self) -> int:
        return self.num_rows

    def __getstate__(self) -> PlainValues:
        return {**self.__dict__, "_open": {}}  # each process maps the files itself

    def __getitem__(self, i: int) -> int:
        """Return the row for `read`, which is its number."""
        return i

    def read(self, row: int, row_number: int, rng: np.random.Generator | None = None) -> Batch:
        """Return one sample: `latent` (c, h, w) or `moments` (2c, h, w), `index` and the further columns; and
        `condition`, if the cache has it.

        Args:
            rng: draws what `RowReader` would draw; None for no augmentation.
        """
        number, offset = divmod(row, self.rows_per_shard)
        if number not in self._open:
            self._open[number] = _read(self.shards[number].path)
        tensors, values = self._open[number]
        view = int(rng is not None and self.reader.random_flip and bool(rng.random() < 0.5))
        sample = {self.kind: tensors[self.kind][offset, view], "index": int(tensors["index"][offset])}
        for column in self.reader.others:
            kept = tensors[column.name][offset] if column.name in tensors else values[column.name][offset]
            sample[column.name] = column.restored(kept[view] if column.aligned else kept, rng)
        if observed := [name for name in tensors if name.startswith(OBSERVED)]:
            sample["observed"] = {name.removeprefix(OBSERVED): tensors[name][offset, view] for name in observed}
        if "encoded" in values:
            place = values["encoded"][sample[values["encodes"]]]
            encoded = {name: value for name, value in tensors.items() if name.startswith(CONDITION)}
            sample["condition"] = {name.removeprefix(CONDITION): value[place] for name, value in encoded.items()}
        return sample

    def collate(self, samples: list[Batch]) -> Batch:
        return self.reader.collate(samples)


def _read(path: Path) -> tuple[dict[str, Tensor], PlainValues]:
    """Return the tensors and the plain values in a file."""
    instead = f"remove it, and `ldmprobe cache --config YOURS.yaml --out {path.parent}` makes it again"
    with readable(path, "cached latents", instead):
        return read_tensors(path)
