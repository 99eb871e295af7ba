"""ProbeRecord: what a probe found. The product: on disk before any logger sees it; plots and reports read nothing else.

One record is one tidy table (and one Parquet file). A row is a number with its place:

========  ==================================================================================
column    meaning
========  ==================================================================================
probe     which probe: "ddim", "denoising", "training"
step      optimiser steps taken when it ran
metric    what was measured, such as "step_kl"; units in the metric's description
index     position in sampling order (curves), or running number (images); −1 for scalars
timestep  of the noise level, −1 where there is none
log_snr   of the noise level, NaN where there is none
sample    number of the sample (scatters, images), −1 otherwise
value     the number
lower     end of its 95 % interval, NaN where none is known
upper     the other end
image     PNG bytes, null except for images
========  ==================================================================================

The file's metadata (key ``ldmprobe``) holds schema version, time, provenance and fingerprints as JSON.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 1
SCHEMA = pa.schema(
    [
        ("probe", pa.string()),
        ("step", pa.int64()),
        ("metric", pa.string()),
        ("index", pa.int32()),
        ("timestep", pa.int32()),
        ("log_snr", pa.float64()),
        ("sample", pa.int32()),
        ("value", pa.float64()),
        ("lower", pa.float64()),
        ("upper", pa.float64()),
        ("image", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Curve:
    """A number per noise level, in sampling order (noisiest first). All arrays have shape (S,)."""

    timestep: np.ndarray
    log_snr: np.ndarray
    value: np.ndarray
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None


@dataclass(frozen=True)
class Scatter:
    """Two coordinates per sample at one noise level: ``xy`` (N, 2)."""

    timestep: int
    log_snr: float
    xy: np.ndarray


@dataclass(frozen=True)
class PerSample:
    """A number per noise level and sample: ``value`` (S, N), levels as a curve's. What paired comparisons are made of."""

    timestep: np.ndarray
    log_snr: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class ProbeRecord:
    """What one run of one probe found.

    Attributes:
        probe: which probe.
        step: optimiser steps taken when it ran.
        scalars, curves, scatters, per_sample, images: by metric name. A scatter is one per noise level; an image is PNG bytes.
        provenance: what it was measured with: sample numbers, steps, weights, versions; plain JSON values.
        fingerprints: hashes of grid, reference, basis, codec, sampler: records are comparable where these agree.
        created: UTC, ISO 8601.
    """

    probe: str
    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    scatters: dict[str, list[Scatter]] = field(default_factory=dict)
    per_sample: dict[str, PerSample] = field(default_factory=dict)
    images: dict[str, list[bytes]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def to_table(self) -> pa.Table:
        """The tidy table described above."""
        blocks = [_block(metric, value=[value]) for metric, value in self.scalars.items()]
        for metric, curve in self.curves.items():
            blocks.append(
                _block(
                    metric,
                    index=np.arange(len(curve.value)),
                    timestep=curve.timestep,
                    log_snr=curve.log_snr,
                    value=curve.value,
                    lower=curve.lower,
                    upper=curve.upper,
                )
            )
        for metric, scatters in self.scatters.items():
            for index, scatter in enumerate(scatters):
                for axis in (0, 1):
                    n = len(scatter.xy)
                    blocks.append(
                        _block(
                            f"{metric}/pc{axis + 1}",
                            index=np.full(n, index),
                            timestep=np.full(n, scatter.timestep),
                            log_snr=np.full(n, scatter.log_snr),
                            sample=np.arange(n),
                            value=scatter.xy[:, axis],
                        )
                    )
        for metric, each in self.per_sample.items():
            levels, n = each.value.shape
            blocks.append(
                _block(
                    metric,
                    index=np.repeat(np.arange(levels), n),
                    timestep=np.repeat(each.timestep, n),
                    log_snr=np.repeat(each.log_snr, n),
                    sample=np.tile(np.arange(n), levels),
                    value=each.value.ravel(),
                )
            )
        for metric, images in self.images.items():
            n = len(images)
            blocks.append(
                _block(metric, index=np.arange(n), sample=np.arange(n), value=np.full(n, np.nan), image=images)
            )
        table = pa.concat_tables(blocks) if blocks else _block("", value=[])
        table = table.add_column(0, "probe", pa.array([self.probe] * len(table), pa.string()))
        table = table.add_column(1, "step", pa.array([self.step] * len(table), pa.int64()))
        header = {
            "schema_version": SCHEMA_VERSION,
            "probe": self.probe,
            "step": self.step,
            "created": self.created,
            "provenance": self.provenance,
            "fingerprints": self.fingerprints,
        }
        return table.cast(SCHEMA).replace_schema_metadata({"ldmprobe": json.dumps(header)})

    @classmethod
    def from_table(cls, table: pa.Table) -> ProbeRecord:
        """The record that :meth:`to_table` wrote.

        Raises:
            ValueError: no ldmprobe table, or of a newer schema.
        """
        metadata = (table.schema.metadata or {}).get(b"ldmprobe")
        if metadata is None:
            raise ValueError("not a probe record: its metadata has no key 'ldmprobe'")
        header = json.loads(metadata)
        if header["schema_version"] > SCHEMA_VERSION:
            raise ValueError(
                f"written by a newer ldmprobe (schema {header['schema_version']}, this one reads {SCHEMA_VERSION})"
            )
        scalars: dict[str, float] = {}
        curves: dict[str, Curve] = {}
        images: dict[str, list[bytes]] = {}
        axes: dict[str, Any] = {}
        per_sample: dict[str, PerSample] = {}
        metrics = np.asarray(table["metric"].to_pylist(), dtype=object)
        for metric in dict.fromkeys(metrics.tolist()):
            rows = table.filter(pa.array(metrics == metric))
            column = {
                name: rows[name].to_numpy()
                for name in ("index", "timestep", "log_snr", "sample", "value", "lower", "upper")
            }
            if rows["image"].null_count < len(rows):
                images[metric] = rows["image"].to_pylist()
            elif metric.endswith(("/pc1", "/pc2")):
                axes[metric] = column
            elif column["sample"][0] >= 0:
                levels = int(column["index"].max()) + 1
                first = slice(None, None, len(rows) // levels)
                value = column["value"].reshape(levels, -1)
                per_sample[metric] = PerSample(column["timestep"][first], column["log_snr"][first], value)
            elif column["index"][0] < 0:
                scalars[metric] = float(column["value"][0])
            else:
                known = bool(np.isfinite(column["lower"]).any())
                curves[metric] = Curve(
                    column["timestep"],
                    column["log_snr"],
                    column["value"],
                    column["lower"] if known else None,
                    column["upper"] if known else None,
                )
        scatters: dict[str, list[Scatter]] = {}
        for metric in (name.removesuffix("/pc1") for name in axes if name.endswith("/pc1")):
            first, second = axes[f"{metric}/pc1"], axes[f"{metric}/pc2"]
            scatters[metric] = []
            for index in np.unique(first["index"]):
                here = first["index"] == index
                xy = np.stack([first["value"][here], second["value"][here]], axis=1)
                scatters[metric].append(Scatter(int(first["timestep"][here][0]), float(first["log_snr"][here][0]), xy))
        return cls(
            header["probe"],
            header["step"],
            scalars,
            curves,
            scatters,
            per_sample,
            images,
            header["provenance"],
            header["fingerprints"],
            header["created"],
        )


def fingerprint(*parts: Any) -> str:
    """A short hash of arrays, tensors and JSON values, for "are these two comparable?"."""
    digest = hashlib.sha256()
    for part in parts:
        if hasattr(part, "detach"):
            part = part.detach().cpu().numpy()
        if isinstance(part, np.ndarray):
            digest.update(str((part.shape, part.dtype.str)).encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _block(metric: str, **columns: Any) -> pa.Table:
    n = len(columns["value"])
    defaults: dict[str, Any] = {
        "index": np.full(n, -1),
        "timestep": np.full(n, -1),
        "log_snr": np.full(n, np.nan),
        "sample": np.full(n, -1),
        "lower": np.full(n, np.nan),
        "upper": np.full(n, np.nan),
        "image": [None] * n,
    }
    values = {**defaults, **{name: column for name, column in columns.items() if column is not None}}
    return pa.table(
        {
            "metric": pa.array([metric] * n, pa.string()),
            **{field.name: pa.array(values[field.name], field.type) for field in SCHEMA if field.name in values},
        }
    )
