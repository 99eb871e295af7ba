"""Latents encoded once and kept on disk: the folder's format, its key and its reader. ``ldmprobe cache`` writes it.

``cache.json`` says what the folder is of and how many rows it has; ``train-00000.safetensors``, … and ``held_out-…`` have the latents of
so many rows each, with index, label and caption; ``text-…`` has what a frozen text encoder makes of each different caption, ``prompt-…`` of a
prompt, or of none, under a hash of it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldmprobe.data.identity import image_hashes
from ldmprobe.data.rows import RowReader
from ldmprobe.data.sources import ROW_NUMBER
from ldmprobe.data.stream import ShuffledStream
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.difference import first_difference
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import Conditioning
from ldmprobe.models.denoiser import Condition

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SPLITS = ("train", "held_out")
_DESCRIPTION = "cache.json"
_FORMAT = 5  # since 5, pictures are upright, and transparency is on the background
_TRANSFORMS = ("size", "channels", "resize", "random_flip", "background", "value_range")
_VALUES_HASHED = 65_536  # of each weight tensor


# --- the key -------------------------------------------------------------------------------------------------------------


def cache_key(
    rows: dict[str, Any], reader: RowReader, codec: LatentCodec, conditioning: Conditioning, dtype: str
) -> dict[str, Any]:
    """All that cached latents depend on, as plain values by part. Writer and reader of a cache both compute it, by this function.

    Of the data these are the number of rows, all labels and captions, and a hash of each image as it is stored
    (``data/identity.py``). The codec's scale and shift are no part: latents are kept before them.

    Args:
        rows: of each of ``SPLITS``.
        conditioning: ready for the network and the data (``Conditioning.prepare``).
    """
    description = {name: value for name, value in codec.description.items() if name not in ("scale", "shift")}
    return {
        "format": _FORMAT,
        "data": {
            "columns": [reader.image_column, reader.label_column, reader.caption_column],
            **{split.replace("_", "-"): _split_key(rows[split], reader) for split in SPLITS},
        },
        "transforms": {name: value for name, value in asdict(reader).items() if name in _TRANSFORMS},
        "codec": json.loads(json.dumps(description, default=str)) | {"weights": _weights_hash(codec.weights())},
        "latents": {"kind": codec.unscaled_kind, "dtype": dtype},
        "text": _encoder_key(conditioning),
    }


def key_hash(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def _encoder_key(conditioning: Conditioning) -> dict[str, Any] | None:
    encoder = conditioning.frozen_encoder
    if encoder is None:
        return None
    key = encoder.encoder_key
    description = json.dumps(key["encoders"], sort_keys=True, default=str)
    return key | {
        "encoders": hashlib.sha256(description.encode()).hexdigest(),
        "weights": _weights_hash(conditioning.weights()),
    }


def _weights_hash(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Of up to 65,536 evenly spaced values of each, as float32 whatever they are stored in."""
    hashes = []
    for name, tensor in weights:
        values = tensor.detach().flatten()[:: max(1, -(-tensor.numel() // _VALUES_HASHED))]
        told = f"{name} {tuple(tensor.shape)}".encode()
        hashes.append(hashlib.sha256(told + values.cpu().float().numpy().tobytes()).hexdigest())
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def _split_key(rows: Any, reader: RowReader) -> dict[str, Any]:
    columns = {"row numbers": ROW_NUMBER, "labels": reader.label_column, "captions": reader.caption_column}
    return {
        "number of rows": len(rows),
        "images": hashlib.sha256(image_hashes(rows, reader.image_column).tobytes()).hexdigest(),
        **{
            name: hashlib.sha256(json.dumps(_in_order(rows, rows.data.column(column)).to_pylist()).encode()).hexdigest()
            for name, column in columns.items()
            if column in rows.column_names
        },
    }


def _in_order(rows: Any, stored: Any) -> Any:
    """An Arrow column of the table behind ``rows``, as they go through it; many times faster than ``rows[column]``."""
    return stored if rows._indices is None else stored.take(rows._indices.column(0))


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """What is not the same in two keys, in words."""
    match theirs.get("text") is None, ours["text"] is None:
        case False, True:
            return "the captions were encoded there; here the text encoder is trained, or there is none"
        case True, False:
            return "the captions were not encoded there; here the text encoder is frozen"
    difference = first_difference(theirs, ours)
    return difference and f"its {difference}"


# --- the folder ----------------------------------------------------------------------------------------------------------


class Shard(NamedTuple):
    """One file: rows ``start`` … ``stop − 1`` of a split, or captions of "text"."""

    split: str
    start: int
    stop: int
    path: Path


class LatentCache:
    """A folder of latents.

    Attributes:
        key: of what they are, see ``cache_key``.
        num_rows: of each split, and of "text".
        rows_per_shard: in each file but a split's last.
        image_shape: (C, H, W) of the images.

    Raises:
        ConfigurationError: the folder is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            description = json.loads((folder / _DESCRIPTION).read_text())
            self.key: dict[str, Any] = description["key"]
            self.num_rows: dict[str, int] = description["num_rows"]
            self.rows_per_shard: int = description["rows_per_shard"]
            self.image_shape: tuple[int, ...] = tuple(description["image_shape"])
        except Exception as error:  # no folder, no file, no JSON, another JSON: all mean the same
            raise ConfigurationError(
                f"{folder} is no cache of latents ({type(error).__name__}: {error}); `ldmprobe cache --config YOURS.yaml --out {folder}` makes "
                "one there."
            ) from error

    @staticmethod
    def describe(
        key: dict[str, Any], num_rows: dict[str, int], rows_per_shard: int, image_shape: tuple[int, ...]
    ) -> bytes:
        """The content of a new folder's ``cache.json``."""
        description = {
            "key": key,
            "num_rows": num_rows,
            "rows_per_shard": rows_per_shard,
            "image_shape": list(image_shape),
        }
        return json.dumps(description, indent=1).encode()

    @staticmethod
    def description_path(folder: Path) -> Path:
        return folder / _DESCRIPTION

    @property
    def dtype(self) -> str:
        return self.key["latents"]["dtype"]

    def shards(self, split: str | None = None) -> list[Shard]:
        """All files that there are when the cache is complete."""
        size = self.rows_per_shard
        return [
            Shard(name, start, min(start + size, number), self.folder / f"{name}-{start // size:05d}.safetensors")
            for name, number in self.num_rows.items()
            if split in (None, name)
            for start in range(0, number, size)
        ]

    def prompt_path(self, prompt: str | None) -> Path:
        """The file of a prompt of probes and samples, or of none, that may be there: it is no part of the key."""
        return self.folder / f"prompt-{hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:12]}.safetensors"

    def prompts(self, prompts: Sequence[str | None]) -> dict[str | None, Condition]:
        """The conditions, of shape (1, …), of the prompts, None for no prompt, that are there; a warning names the others.

        Raises:
            ConfigurationError: a file is damaged.
        """
        paths = {prompt: self.prompt_path(prompt) for prompt in prompts}
        if missing := [prompt for prompt, path in paths.items() if not path.is_file()]:
            warnings.warn(
                f"{self.folder} lacks {', '.join('the null condition' if each is None else repr(each) for each in missing)}, so that the "
                f"text encoders are loaded; `ldmprobe cache --config YOURS.yaml --out {self.folder}` adds what is missing.",
                stacklevel=2,
            )
        return {prompt: _read(path)[0] for prompt, path in paths.items() if path.is_file()}

    def check_key(self, key: dict[str, Any]) -> None:
        """Raise ConfigurationError, naming what differs, where these are latents of something else."""
        difference = _difference(self.key, key)
        if difference is not None:
            raise ConfigurationError(
                f"{self.folder} holds latents of something else: {difference}. `ldmprobe cache --config YOURS.yaml --out ANOTHER_FOLDER` "
                "makes those of this configuration."
            )

    def check_complete(self) -> None:
        """Raise ConfigurationError where files are missing."""
        shards = self.shards()
        missing = [shard for shard in shards if not shard.path.is_file()]
        if missing:
            raise ConfigurationError(
                f"{self.folder} is not complete: {len(missing)} of {len(shards)} files are missing, such as {missing[0].path.name}; `ldmprobe "
                f"cache --config YOURS.yaml --out {self.folder}` finishes it."
            )

    def rows(self, split: str) -> LatentRows:
        text = LatentRows(self, "text", None) if self.num_rows["text"] else None
        return LatentRows(self, split, text)


# --- reading -------------------------------------------------------------------------------------------------------------


class LatentRows:
    """The rows of a split, memory-mapped: rows and their reader at once, as ``ShuffledStream`` takes them.

    Args:
        text: the rows of "text", where the captions are encoded too.
    """

    def __init__(self, cache: LatentCache, split: str, text: LatentRows | None) -> None:
        self.shards, self.text = cache.shards(split), text
        self.rows_per_shard, self.num_rows = cache.rows_per_shard, cache.num_rows[split]
        self.kind, self.random_flip = cache.key["latents"]["kind"], cache.key["transforms"]["random_flip"]
        self._open: dict[int, tuple[dict[str, Tensor], dict[str, Any]]] = {}

    def __len__(self) -> int:
        return self.num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # each process maps the files itself

    def __getitem__(self, i: int) -> dict[str, Any]:
        """As it is stored; latents of shape (views, c, h, w)."""
        number, offset = divmod(i, self.rows_per_shard)
        tensors, texts = self._opened(number)
        return {name: values[offset] for name, values in (*tensors.items(), *texts.items())}

    def read(self, row: dict[str, Any], row_number: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """One sample: ``latent`` (c, h, w) or ``moments`` (2c, h, w), ``index``, and ``label``, ``caption``, ``condition`` if the cache has them.

        Args:
            rng: draws what ``RowReader`` would draw; None for no augmentation.
        """
        flipped = rng is not None and self.random_flip and rng.random() < 0.5
        sample = {**row, self.kind: row[self.kind][int(flipped)]}
        if self.text is not None:
            sample["condition"] = self.text[int(sample.pop("text"))]
        return sample

    def _opened(self, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if number not in self._open:
            self._open[number] = _read(self.shards[number].path)
        return self._open[number]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and texts of a file."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, json.loads(file.metadata()["ldmprobe"])
    except Exception as error:  # safetensors and json raise many kinds, all meaning the same
        raise ConfigurationError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it, and `ldmprobe cache --config YOURS.yaml --out {path.parent}` makes "
            "it again."
        ) from error


class LatentStream(ShuffledStream):
    """The same rows in the same order as of images, and the same of them flipped."""

    def __init__(self, rows: LatentRows, seed: int) -> None:
        super().__init__(rows, rows, seed)  # type: ignore[arg-type]  # it reads as a RowReader does

    def __getitem__(self, positions: list[int]) -> dict[str, Any]:
        return collate_latents([self._sample(position) for position in positions])


def collate_latents(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples to a batch: tensors stacked, ``caption`` a list of strings, ``condition`` a dict of tensors (N, …)."""
    batch: dict[str, Any] = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if isinstance(first, dict):
            batch[name] = {part: torch.stack([value[part] for value in values]) for part in first}
        else:
            batch[name] = torch.stack(values) if isinstance(first, Tensor) else values
    return batch
