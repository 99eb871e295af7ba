"""The writer of a cache: images and captions encoded once, into a folder that training reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldmprobe.data.images import ImageData
from ldmprobe.data.latent_cache import CONDITION, DTYPES, OBSERVED, SPLITS, LatentCache, Shard, cache_key
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.atomic import atomic_write, remove_partials
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.plain_text import plain
from ldmprobe.io.tensor_file import write_tensors
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import Conditioning, FrozenEncoder
from ldmprobe.models.denoiser import check_condition
from ldmprobe.types import Batch, PlainValues


def write_cache(
    data: ImageData,
    codec: LatentCodec,
    conditioning: Conditioning,
    network: torch.nn.Module,
    folder: Path | None = None,
    dtype: str = "float32",
    shard: int = 0,
    num_shards: int = 1,
    rows_per_shard: int = 1024,
    batch_size: int = 32,
) -> tuple[Path, bool]:
    """Encode all rows whose files are not there yet.

    A file is there whole or not at all, and has the same bytes whoever writes it; so a run that was killed is simply
    started again.

    Args:
        folder: default: "latents/" and a hash of what they are of.
        shard, num_shards: write every `num_shards`-th file, from this one on.
        rows_per_shard: in a file; held in memory at once.
        batch_size: images through the codec at once.

    Returns:
        the folder, and whether all rows and captions are there.

    Raises:
        ConfigurationError: the folder holds other latents, or cannot be written to; data that cannot be kept; latents
            that are not finite.
    """
    if not 0 <= shard < num_shards:
        raise ConfigurationError(f"--shard is {shard} and --num-shards {num_shards}; expected 0 <= shard < num-shards.")
    check_numbers("The cache", 1, rows_per_shard=rows_per_shard, batch_size=batch_size)
    data.latents = None
    data.prepare_data()
    data.setup("fit")
    data.check_cacheable()
    conditioning.prepare(network, data, codec)
    latent_shape = codec.latent_shape(data.image_shape)
    check_condition(network, latent_shape, conditioning.for_samples(torch.zeros(1, dtype=torch.long)))
    key = cache_key(data.identity, data.rows, data.reader, codec, conditioning, dtype)
    folder = Path("latents", fingerprint(key)) if folder is None else folder
    encoder = conditioning.frozen_encoder
    try:
        found = _described(folder, key, rows_per_shard, data)
        mine = [part for part in found.shards()[shard::num_shards] if not part.path.exists()]
        _write_rows(data, codec, conditioning, mine, dtype, batch_size)
        if encoder is not None and shard == 0:
            for prompt in dict.fromkeys(encoder.asked):
                if not (path := found.prompt_path(prompt)).exists():
                    _write(path, _condition(encoder, None if prompt is None else [prompt], dtype), {})
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written to ({error}); choose another --out, or make room."
        ) from error
    return folder, all(part.path.exists() for part in found.shards())


def _described(folder: Path, key: PlainValues, rows_per_shard: int, data: ImageData) -> LatentCache:
    """Return the cache in `folder`, as yet without rows where it is new."""
    path = LatentCache.description_path(folder)
    if not path.exists():
        if folder.is_dir() and any(folder.glob("[!.]*")) and not path.exists():  # another process may just have made it
            raise ConfigurationError(f"{folder} is not empty and no cache of latents; give --out a new folder.")
        description = {
            "key": key,
            "num_rows": {split: len(rows) for split, rows in data.rows.items()},
            "rows_per_shard": rows_per_shard,
            "image_shape": list(data.image_shape),
        }
        with atomic_write(path) as file:
            file.write(json.dumps(description, indent=1).encode())
    found = LatentCache(folder)
    found.check_key(key)
    return found


class _Views(Dataset):
    """The views of each row, as a cache keeps them."""

    def __init__(self, data: ImageData) -> None:
        self.rows = data.rows
        self.readers = {split: data.reader_of(split) for split in SPLITS}

    def __getitem__(self, place: tuple[str, int]) -> list[Batch]:
        split, i = place
        return self.readers[split].views(self.rows[split][i], i)

    def loader(self, shards: Sequence[Shard], batch_size: int, num_workers: int) -> DataLoader:
        """Read in batches of which none reaches over a file's end, so that what is encoded together, and its last bits,
        depend on the file alone.
        """
        places = [
            [(shard.split, i) for i in range(start, min(start + batch_size, shard.stop))]
            for shard in shards
            for start in range(shard.start, shard.stop, batch_size)
        ]
        return DataLoader(self, batch_sampler=places, num_workers=num_workers, collate_fn=list)


def _write_rows(
    data: ImageData,
    codec: LatentCodec,
    conditioning: Conditioning,
    shards: Sequence[Shard],
    dtype: str,
    batch_size: int,
) -> None:
    encoder = conditioning.frozen_encoder
    batches = iter(_Views(data).loader(shards, batch_size, data.num_workers))
    for shard in shards:
        parts: dict[str, list[Any]] = {}
        for _ in range(shard.start, shard.stop, batch_size):
            for name, values in _encoded(next(batches), data, codec, conditioning, shard.split, dtype).items():
                parts.setdefault(name, []).append(values)
        tensors = {name: torch.cat(values) for name, values in parts.items() if isinstance(values[0], Tensor)}
        values = {name: list(chain(*lists)) for name, lists in parts.items() if name not in tensors}
        if encoder is not None:
            each = (value if isinstance(value, list) else [value] for value in values[encoder.encodes])
            different = sorted(set(chain(*each)))
            conditions = [
                _condition(encoder, different[start : start + batch_size], dtype)
                for start in range(0, len(different), batch_size)
            ]
            tensors |= {CONDITION + name: torch.cat([c[name] for c in conditions]) for name in conditions[0]}
            values |= {"encodes": encoder.encodes, "encoded": {value: i for i, value in enumerate(different)}}
        _write(shard.path, tensors, values)


def _encoded(
    rows: list[list[Batch]], data: ImageData, codec: LatentCodec, conditioning: Conditioning, split: str, dtype: str
) -> PlainValues:
    """Return the latents, columns and numbers of rows, and what the conditioning takes of them, each by view where the
    view matters.
    """
    views = [data.reader.collate(list(samples)) for samples in zip(*rows, strict=True)]
    observed = [conditioning.observe(view) for view in views]
    images = torch.stack([view.pop("image") for view in views], dim=1)
    encoded = codec.unscaled(images.flatten(0, 1).to(codec.scale.device)).cpu().unflatten(0, images.shape[:2])
    named = [f"The latents of row {i} of the {split.replace('_', '-')} images" for i in views[0]["index"].tolist()]
    kept: PlainValues = {codec.unscaled_kind: _in(dtype, encoded, named)}
    for name in observed[0]:
        each = torch.stack([view[name].cpu() for view in observed], dim=1)
        kept[OBSERVED + name] = _in(dtype, each, named) if each.is_floating_point() else each
    for name, values in views[0].items():
        column = data.reader.column_called(name)
        if column is None or not column.aligned:
            kept[name] = values
        elif isinstance(values, Tensor):
            kept[name] = torch.stack([view[name] for view in views], dim=1)
        else:
            kept[name] = [list(each) for each in zip(*(view[name] for view in views), strict=True)]
    return kept


def _condition(encoder: FrozenEncoder, captions: list[str] | None, dtype: str) -> dict[str, Tensor]:
    """Return what is kept of captions, or of none."""
    named = ["the null condition"] if captions is None else [f"caption {caption!r}" for caption in captions]
    return {
        name: _in(dtype, value.cpu(), [f"The {name} of {each}" for each in named])
        if value.is_floating_point()
        else value.cpu()
        for name, value in encoder.encode(captions).items()
    }


def _in(dtype: str, values: Tensor, named: Sequence[str]) -> Tensor:
    """Return values (N, …) in `dtype`.

    Raises:
        ConfigurationError: some are not finite; the first is called as in `named` (N).
    """
    kept = values.to(DTYPES[dtype])
    lost = (~kept.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if lost:
        others = f" (and of {len(lost) - 1} others)" if len(lost) > 1 else ""
        raise ConfigurationError(
            f"{named[lost[0]]}{others} are not finite in {dtype}; look at what is encoded and at the weights"
            + (", or keep bfloat16 or float32 (--dtype)." if dtype == "float16" else ".")
        )
    return kept


def _write(path: Path, tensors: dict[str, Tensor], values: PlainValues) -> None:
    remove_partials(path.parent, f"{path.name}.*")
    write_tensors(path, tensors, values)
    print(f"ldmprobe: {plain(path)}", flush=True)
