"""Reading a sharded checkpoint, a folder with a part from each rank, in one process and without running what is in
it.
"""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ldmprobe.types import StateDict

# All that torch.distributed.checkpoint writes of tensors into the index of their parts, which is a pickle.
_PLAIN = {
    "torch": {"Size", "device", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
}


def is_sharded_checkpoint(path: Path) -> bool:
    """Return whether ``path`` is a folder that Lightning's ModelParallelStrategy saved with
    ``save_distributed_checkpoint``.
    """
    return (path / ".metadata").is_file() and (path / "meta.pt").is_file()


def load_sharded_checkpoint(path: Path) -> StateDict:
    """The checkpoint as one process would have saved it, but for the state of its optimizers.

    Tensors and plain values are read, nothing else is unpickled.

    Raises:
        pickle.UnpicklingError: there is something else in it.
    """
    checkpoint: StateDict = torch.load(path / "meta.pt", map_location="cpu", weights_only=True)
    reader = _PlainReader(path)
    stored = reader.read_metadata().state_dict_metadata
    state: dict[str, Tensor] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if name.startswith("state_dict.") and isinstance(entry, TensorStorageMetadata)  # of bytes would be unpickled
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(state, storage_reader=reader, no_dist=True)
    return {**checkpoint, "state_dict": {name.removeprefix("state_dict."): value for name, value in state.items()}}


def check_sharded_checkpoint(path: Path) -> None:
    """Read the index and every part of it that is no tensor, plain values alone: Lightning, which unpickles both when a
    run is resumed, is not given any other.

    Raises:
        pickle.UnpicklingError: there is something else in them.
    """
    index = _PlainReader(path).read_metadata()
    for key, place in (index.storage_data or {}).items():
        if not isinstance(index.state_dict_metadata.get(key.fqn), TensorStorageMetadata):
            with (path / place.relative_path).open("rb") as file:
                file.seek(place.offset)
                torch.load(io.BytesIO(file.read(place.length)), map_location="cpu", weights_only=True)


class _PlainReader(FileSystemReader):
    """Refuses an index that names anything but tensors' places, or parts outside of its folder."""

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _PlainUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"its index is a {type(metadata).__name__}")
        for part in (metadata.storage_data or {}).values():
            if Path(part.relative_path).name != part.relative_path:
                raise pickle.UnpicklingError(f"its index names a file outside of it, {part.relative_path}")
        return metadata


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if name not in _PLAIN.get(module, ()):
            raise pickle.UnpicklingError(f"its index would run {module}.{name}")
        return super().find_class(module, name)
