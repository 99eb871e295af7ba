"""Two audited runs compared, batch by batch, and what follows from it in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field

from ldmprobe.audit.ledger import KINDS, Ledger, differences, in_words
from ldmprobe.audit.observation import Observation
from ldmprobe.io.digest import digest

_WIDTH = 100


@dataclass
class Row:
    """The number of items of one kind that were compared, their bytes, and how many differed."""

    names: dict[str, None] = field(default_factory=dict)
    checks: int = 0
    num_bytes: int = 0
    differing: int = 0


@dataclass
class LedgerDiff:
    """Two runs side by side: a row for each kind of thing, and the first difference in words."""

    rows: dict[str, Row]
    first: str | None


def compare(one: Observation, other: Observation, leave_out: Iterable[str] = ()) -> LedgerDiff:
    """Two runs, batch by batch, and then what they logged (but for the metrics to ``leave_out``)."""
    rows = {kind: Row() for kind in KINDS}
    first: str | None = None
    pairs = [(place, mine, theirs) for (place, mine), (_, theirs) in zip(one.ledgers, other.ledgers, strict=False)]
    pairs.append(("in the log", _metrics_ledger(one, leave_out), _metrics_ledger(other, leave_out)))
    for place, mine, theirs in pairs:
        for kind, items in mine.items():
            rows[kind].names |= dict.fromkeys(items)
            rows[kind].checks += len(items)
            rows[kind].num_bytes += sum(item.num_bytes for item in items.values())
        for kind, name in differences(mine, theirs):
            rows[kind].differing += 1
            first = first or f"{place}: {in_words(kind, name)}"
    if len(one.ledgers) != len(other.ledgers):
        first = first or f"the number of batches: {len(one.ledgers) - 2} and {len(other.ledgers) - 2}"
    return LedgerDiff({kind: row for kind, row in rows.items() if row.checks}, first)


def _metrics_ledger(seen: Observation, leave_out: Iterable[str]) -> Ledger:
    return {
        "logged metrics": {
            f"{name} at step {step}": digest(values)
            for name, by_step in seen.metrics.items()
            if name not in set(leave_out)
            for step, values in by_step.items()
        }
    }


def unsteady_metrics(one: Observation, other: Observation) -> set[str]:
    """Return metrics, such as times, that differ although the state of training does not."""
    names = one.metrics.keys() | other.metrics.keys()
    different = {name for name in names if one.metrics.get(name) != other.metrics.get(name)}
    return set() if compare(one, other, leave_out=different).first else different


def table(compared: LedgerDiff) -> str:
    """A line for each kind of thing."""
    lines = [f"{'compared after every batch':<40}{'checks':>9}{'bytes':>12}   differ"]
    for kind, row in compared.rows.items():
        which = f" ({', '.join(row.names)})" if kind == "random state" else ""
        lines.append(f"{kind + which:<40}{row.checks:>9,}{_size(row.num_bytes):>12}   {row.differing:>6,}")
    return "\n".join(lines)


def verdict(probed: Observation, compared: LedgerDiff, control: LedgerDiff | None) -> tuple[bool, str]:
    """Return whether the probes left training alone, and the sentences that say so."""
    said = []
    runs = sum(probed.probe_runs.values())
    for name, count in probed.probe_runs.items():
        if name in probed.failures:
            said.append(f"{name} failed, so that less was tried than should have been ({probed.failures[name]}).")
        elif count == 0:
            said.append(f"{name} did not run.")
    if probed.disturbances:
        culprits = {disturbance.probe: disturbance for disturbance in reversed(probed.disturbances)}
        said += [f"Disturbed: {disturbance}." for disturbance in reversed(culprits.values())]
    repeatable = control is None or control.first is None
    if control is not None and control.first is not None:
        said.append(
            "Training is not repeatable here, with or without probes: two runs without any differ, first at "
            f"{control.first}. So only the state before and after each run of a probe can be compared. (On a GPU, "
            "`--trainer.deterministic=true` may help.)"
        )
    elif compared.first is not None:
        said.append(f"Training with probes differs from training without, first at {compared.first}.")
    undisturbed = not probed.disturbances and (compared.first is None or not repeatable)
    if undisturbed:
        before_after = (
            f"the {runs} runs of the probes left everything as they found it ({_size(probed.bytes_bracketed)} compared)"
        )
        said.append(
            f"Undisturbed: with probes, training is bit-identical to training without, 0 bytes differ; {before_after}."
            if repeatable
            else f"Undisturbed, as far as can be told: {before_after}."
        )
    return undisturbed, "\n".join(textwrap.fill(sentence, _WIDTH) for sentence in said)


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"
