"""Reads an offline ``.wandb`` file: a 7-byte header, then LevelDB-style records of protocol buffers."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 32 * 1024, 7


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    """All history rows of the one offline run under ``run_dir``."""
    return [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in read_records(run_dir)
        if record.HasField("history")
    ]


def read_summary(run_dir: Path) -> dict[str, Any]:
    """What the summary has come to, by name."""
    updates = [item for record in read_records(run_dir) for item in record.summary.update]
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in updates}


def read_records(run_dir: Path) -> list[Any]:
    """All records of the one offline run under ``run_dir``."""
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    for _ in range(100):  # finish() returns before the last flush
        records = list(_records(path.read_bytes()))
        if any(record.HasField("exit") for record in records):
            break
        time.sleep(0.1)
    return records


def _records(data: bytes) -> Iterator[Any]:
    assert data[:4] == b":W&B"
    position, parts = 7, []
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        if kind == 0:
            position += left
            continue
        position += _HEADER
        if position + length > len(data):  # still being written
            return
        parts.append(data[position : position + length])
        position += length
        if kind in (1, 4):  # full, last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record
