"""``ldmprobe cache``: encode the images, and the captions, of a configuration once, into a folder that training reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldmprobe.data.images import ImageData
from ldmprobe.data.latents import DTYPES, SPLITS, LatentCache, Shard, cache_key, key_hash
from ldmprobe.data.rows import collate
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import atomic_write, remove_partials
from ldmprobe.io.plain_text import plain
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import Conditioning, FrozenEncoder
from ldmprobe.models.denoiser import check_text

_NAMED_ROWS = 10  # in a message


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

    A file is there whole or not at all, and has the same bytes whoever writes it; so a run that was killed is simply started again.

    Args:
        folder: default: "latents/" and a hash of what they are of.
        shard, num_shards: write every ``num_shards``-th file, from this one on.
        rows_per_shard: in a file; held in memory at once.
        batch_size: images through the codec at once.

    Returns:
        the folder, and whether all rows and captions are there.

    Raises:
        ConfigurationError: the folder holds other latents, or cannot be written to; data that cannot be kept; latents that are not finite.
    """
    if not 0 <= shard < num_shards:
        raise ConfigurationError(f"--shard is {shard} and --num-shards {num_shards}; expected 0 <= shard < num-shards.")
    if rows_per_shard < 1 or batch_size < 1:
        raise ConfigurationError(
            f"--rows-per-shard is {rows_per_shard} and --batch-size {batch_size}; expected at least 1."
        )
    data.latents = None
    data.prepare_data()
    data.setup("fit")
    data.check_cacheable()
    conditioning.prepare(network, data, codec)
    check_text(network, conditioning.for_samples(torch.zeros(1, dtype=torch.long)))
    codec.latent_shape(data.image_shape)
    key = cache_key(data.rows, data.reader, codec, conditioning, dtype)
    folder = Path("latents", key_hash(key)) if folder is None else folder
    text = conditioning.frozen_encoder
    captions = _captions(data) if text else []
    try:
        found = _described(
            folder,
            key,
            {**{split: len(data.rows[split]) for split in SPLITS}, "text": len(captions)},
            rows_per_shard,
            data,
        )
        mine = [part for part in found.shards()[shard::num_shards] if not part.path.exists()]
        _write_images(data, codec, [part for part in mine if part.split != "text"], dtype, batch_size, captions)
        if text is not None:
            for part in (part for part in mine if part.split == "text"):
                _write(part.path, _encoded_text(text, captions[part.start : part.stop], dtype, batch_size), {})
            for prompt in dict.fromkeys(text.asked) if shard == 0 else ():
                if not (path := found.prompt_path(prompt)).exists():
                    _write(path, _condition(text, None if prompt is None else [prompt], dtype), {})
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written to ({error}); choose another --out, or make room."
        ) from error
    return folder, all(part.path.exists() for part in found.shards())


def _described(
    folder: Path, key: dict[str, Any], num_rows: dict[str, int], rows_per_shard: int, data: ImageData
) -> LatentCache:
    """The cache in ``folder``, as yet without rows where it is new."""
    path = LatentCache.description_path(folder)
    if not path.exists():
        if folder.is_dir() and any(folder.glob("[!.]*")) and not path.exists():  # another process may just have made it
            raise ConfigurationError(f"{folder} is not empty and no cache of latents; give --out a new folder.")
        with atomic_write(path) as file:
            file.write(LatentCache.describe(key, num_rows, rows_per_shard, data.image_shape))
    found = LatentCache(folder)
    found.check_key(key)
    return found


# --- images ----------------------------------------------------------------------------------------------------------------


class _AlwaysFlips:
    """A generator by which RowReader flips."""

    def random(self) -> float:
        return 0.0


class _Views(Dataset):
    """Each row as ``image`` (views, C, H, W): as it is and, in training where images are flipped, mirrored."""

    def __init__(self, data: ImageData) -> None:
        self.rows = data.rows
        self.readers = {split: data.reader_of(split) for split in SPLITS}

    def __getitem__(self, place: tuple[str, int]) -> dict[str, Any]:
        split, i = place
        row, reader = self.rows[split][i], self.readers[split]
        sample = reader.read(row, i)
        views = [sample["image"]]
        if split == "train" and reader.random_flip:
            views.append(reader.read(row, i, _AlwaysFlips())["image"])  # type: ignore[arg-type]
        return {**sample, "image": torch.stack(views)}


def _write_images(
    data: ImageData, codec: LatentCodec, shards: list[Shard], dtype: str, batch_size: int, captions: list[str]
) -> None:
    batches = _batches(data, shards, batch_size)
    number = {caption: i for i, caption in enumerate(captions)}
    for shard in shards:
        parts: dict[str, list[Tensor]] = {codec.unscaled_kind: [], "index": []}
        texts: list[str] = []
        for _ in range(shard.start, shard.stop, batch_size):
            batch = next(batches)
            images = batch["image"]
            encoded = codec.unscaled(images.flatten(0, 1).to(codec.scale.device)).cpu().to(DTYPES[dtype])
            encoded = encoded.unflatten(0, images.shape[:2])
            _check_finite(encoded, batch["index"], shard.split, dtype)
            parts[codec.unscaled_kind].append(encoded)
            for name in ("index", "label"):
                if name in batch:
                    parts.setdefault(name, []).append(batch[name])
            texts += batch.get("caption", [])
        tensors = {name: torch.cat(values) for name, values in parts.items()}
        if captions:
            tensors["text"] = torch.tensor([number[caption] for caption in texts])
        _write(shard.path, tensors, {"caption": texts} if texts else {})


def _batches(data: ImageData, shards: list[Shard], batch_size: int) -> Iterator[dict[str, Any]]:
    """None reaches over a file's end, so that what is encoded together, and its last bits, depend on the file alone."""
    places = [
        [(shard.split, i) for i in range(start, min(start + batch_size, shard.stop))]
        for shard in shards
        for start in range(shard.start, shard.stop, batch_size)
    ]
    return iter(DataLoader(_Views(data), batch_sampler=places, num_workers=data.num_workers, collate_fn=collate))


def _check_finite(encoded: Tensor, index: Tensor, split: str, dtype: str) -> None:
    lost = index[~encoded.flatten(1).isfinite().all(1)].tolist()
    if lost:
        rows = ", ".join(map(str, lost[:_NAMED_ROWS])) + (", …" if len(lost) > _NAMED_ROWS else "")
        raise ConfigurationError(
            f"The latents of row {rows} of the {split.replace('_', '-')} images are not finite in {dtype}; look at these images"
            + (", or keep bfloat16 or float32 (--dtype)." if dtype == "float16" else " and the codec's weights.")
        )


# --- captions --------------------------------------------------------------------------------------------------------------


def _captions(data: ImageData) -> list[str]:
    """Each different caption once."""
    return sorted({str(caption) for split in SPLITS for caption in data.rows[split][data.reader.caption_column][:]})


def _encoded_text(text: FrozenEncoder, captions: list[str], dtype: str, batch_size: int) -> dict[str, Tensor]:
    batches = [captions[start : start + batch_size] for start in range(0, len(captions), batch_size)]
    conditions = [_condition(text, batch, dtype) for batch in batches]
    return {name: torch.cat([condition[name] for condition in conditions]) for name in conditions[0]}


def _condition(text: FrozenEncoder, captions: list[str] | None, dtype: str) -> dict[str, Tensor]:
    """What is kept of captions, or of none."""
    condition = {name: value.cpu() for name, value in text.encode(captions).items()}
    kept = {name: value.to(DTYPES[dtype]) if value.is_floating_point() else value for name, value in condition.items()}
    for name, value in kept.items():
        lost = (~value.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if lost:
            caption = "the null condition" if captions is None else f"caption {captions[lost[0]]!r}"
            raise ConfigurationError(
                f"The {name} of {caption} are not finite in {dtype}; keep bfloat16 or float32 (--dtype)."
            )
    return kept


def _write(path: Path, tensors: dict[str, Tensor], texts: dict[str, list[str]]) -> None:
    from safetensors.torch import save

    remove_partials(path.parent, f"{path.name}.*")
    with atomic_write(path) as file:
        file.write(save({name: value.contiguous() for name, value in tensors.items()}, {"ldmprobe": json.dumps(texts)}))
    print(f"ldmprobe: {plain(path)}", flush=True)
