"""``comparison.parquet``: every number of a comparison, one tidy row each.

=========  ===================================================================================================
column     meaning
=========  ===================================================================================================
run        its label; the first run is what the others are compared with
at         "common": the last step that all runs were probed at; "last": each run's own; "each": every probe
step       optimizer steps taken
metric     a headline curve or scalar of the probes (docs/METRICS.md), or one of those below
index      position of the level in its curve, −1 for scalars and bands
timestep   of the noise level, −1 where there is none
log_snr    of the noise level, NaN where there is none
low, high  the band of log-SNR, NaN where there is none
value      the number
lower      end of its 95 % interval, NaN where none is known
upper      the other end
p_value    of no difference from the first run, NaN where nothing was tested
p_holm     the same, corrected for all bands and runs tested together
=========  ===================================================================================================

====================  ========================================================================================
metric                meaning
====================  ========================================================================================
denoising_bound_nats  held-out bound at every probe; its interval is over images, as the others' are
gain_nats             by how much it is better than the first run: per level, paired
gain_nats_band        the same within a band of log-SNR
gain_nats_total       the same over all levels
steps_to_reach        training steps until the first run's last bound is reached; NaN where it is not
steps_ratio           the same ÷ the first run's own
imbalance_share       how what is recoverable is spread over bands
====================  ========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from itertools import chain

import numpy as np
import pyarrow as pa

from ldmprobe.comparison.findings import Comparison
from ldmprobe.io.record import Curve
from ldmprobe.probing.denoising_record import ERRORS, PROBE, recoverable_shares
from ldmprobe.types import Batch, PlainValues

_NUMBERS = ("low", "high", "log_snr", "value", "lower", "upper", "p_value", "p_holm")
SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("at", pa.string()),
        ("step", pa.int64()),
        ("metric", pa.string()),
        ("index", pa.int32()),
        ("timestep", pa.int32()),
        *((name, pa.float64()) for name in _NUMBERS),
    ]
)


def comparison_table(comparison: Comparison) -> pa.Table:
    """The tidy table described above."""
    rows = chain(_probe_rows(comparison), _gain_rows(comparison), _training_rows(comparison))
    defaults = {"index": -1, "timestep": -1, **dict.fromkeys(_NUMBERS, float("nan"))}
    return pa.Table.from_pylist([{**defaults, **row} for row in rows], schema=SCHEMA)


def _probe_rows(comparison: Comparison) -> Iterator[Batch]:
    """Yield headline curves with their ideals, and scalars, as they are in the records."""
    for whens in comparison.moments.values():
        for moment, (label, record) in ((when, item) for when in whens for item in when.records.items()):
            here = {"run": label, "at": moment.name, "step": record.step}
            headlines = [name for name in record.curves if record.metric(name).shown == "headline"]
            ideals = [str(record.metric(name).ideal_of(name)) for name in headlines]
            for name in dict.fromkeys(headlines + [ideal for ideal in ideals if ideal in record.curves]):
                yield from _level_rows(here | {"metric": name}, record.curves[name])
            for band, share in recoverable_shares(record):
                yield here | {"metric": "imbalance_share", "low": band.low, "high": band.high, "value": share}
            spreads = {record.metric(name).spread for name in record.scalars}
            for name, value in record.scalars.items():
                if record.metric(name).shown == "headline" or name in spreads:
                    yield here | {"metric": name, "value": value}


def _gain_rows(comparison: Comparison) -> Iterator[Batch]:
    # There are no gains where noise levels differ.
    for moment, gains in zip(comparison.moments.get(PROBE, []), comparison.gains, strict=False):
        for label, each in gains.levels.items():
            record = moment.records[label]
            here = {"run": label, "at": moment.name, "step": record.step}
            levels = record.per_sample[ERRORS]
            limits = (each.value - each.half_width, each.value + each.half_width)
            gain = Curve(levels.timestep, levels.log_snr, each.value, *limits)
            yield from _level_rows(here | {"metric": "gain_nats"}, gain, each.p_value)
            for band in gains.bands[label]:
                row = here | _interval(band.gain, band.gain - band.half_width, band.gain + band.half_width)
                row |= {"p_value": band.p_value, "p_holm": band.adjusted}
                edges = {} if band.everywhere else {"low": band.low, "high": band.high}
                yield row | edges | {"metric": "gain_nats_total" if band.everywhere else "gain_nats_band"}


def _training_rows(comparison: Comparison) -> Iterator[Batch]:
    for label, (steps, bound) in comparison.bounds.items():
        here: PlainValues = {"run": label, "at": "each"}
        for step, value, width in zip(steps.tolist(), bound.value.tolist(), bound.half_width.tolist(), strict=True):
            row = here | {"step": step, "metric": "denoising_bound_nats"}
            yield row | _interval(value, value - width, value + width)
        here, reach = here | {"step": int(steps[-1])}, astuple(comparison.steps[label])
        own = comparison.steps[comparison.first.label].steps or float("nan")
        yield here | {"metric": "steps_to_reach"} | _interval(*reach)
        yield here | {"metric": "steps_ratio"} | _interval(*(number / own for number in reach))


def _level_rows(here: PlainValues, curve: Curve, p_value: np.ndarray | None = None) -> Iterator[Batch]:
    columns = {name: vars(curve)[name] for name in ("timestep", "log_snr", "value", "lower", "upper")}
    columns["p_value"] = p_value
    known = {name: column.tolist() for name, column in columns.items() if column is not None}
    for k in range(len(curve.value)):
        yield here | {"index": k} | {name: column[k] for name, column in known.items()}


def _interval(value: float, lower: float, upper: float) -> dict[str, float]:
    return {"value": value, "lower": lower, "upper": upper}
