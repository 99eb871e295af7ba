"""A finished or running run, read back: its verdict, its metrics as tables and figures, and a page in a notebook."""

from __future__ import annotations

import difflib
from functools import cached_property
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.probing.verdict import Verdict
from ldmprobe.tracking.charts.curves import scalar_chart
from ldmprobe.tracking.charts.static import figure
from ldmprobe.tracking.history import comparable_series, thinned
from ldmprobe.tracking.pictures import curves_figure
from ldmprobe.tracking.run_verdict import verdict_on
from ldmprobe.tracking.verdict_html import verdict_html

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_CURVES = 8  # of a figure: as many as one tells apart


def load_run(run_dir: str | Path) -> LoadedRun:
    """Read a run back from its directory; at the end of a notebook's cell it shows its verdict.

    Raises:
        ConfigurationError: there are no records in it.
    """
    store = RecordStore(run_dir)
    if not store.paths():
        raise store.no_records
    return LoadedRun(Path(run_dir))


class LoadedRun:
    """What a run directory holds, as it was when it was loaded::

        run = ldmprobe.load_run("runs/digits")
        run.verdict.state, run.verdict.action
        run.frame("denoising_skill").pivot(index="step", columns="log_snr", values="value")
        run.plot("step_kl").savefig("step_kl.png")

    Attributes:
        directory: the run's.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def records(self) -> dict[str, list[ProbeRecord]]:
        """Scalars and curves of each probe's records that were measured as its last one was, by training step."""
        return {probe: series.numbers() for probe, series in comparable_series(RecordStore(self.directory)).items()}

    @cached_property
    def verdict(self) -> Verdict:
        """What the run has come to, and what to do next."""
        return verdict_on(self.directory)

    @cached_property
    def metrics(self) -> dict[str, str]:
        """The names that ``frame`` and ``plot`` take, each with what it means."""
        lasts = [records[-1] for records in self.records.values() if records]
        return {name: last.metric(name).title for last in lasts for name in (*last.curves, *last.scalars)}

    def frame(self, metric: str) -> pandas.DataFrame:
        """Return a metric over training as a table: a row for each ``probe`` that has it, step and noise level, with
        ``value``, and ``lower`` and ``upper`` of its 95 % interval; of a scalar, a row for each probe and step.

        Raises:
            ConfigurationError: there is no such metric, or pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ConfigurationError("A frame is pandas'; install it by `pip install pandas`.") from error
        parts = []
        for record in (record for records in self._with(metric).values() for record in records):
            when = {"probe": record.probe, "step": record.step}
            if metric in record.scalars:
                parts.append(pandas.DataFrame({**when, "value": [record.scalars[metric]]}))
                continue
            curve = record.curves[metric]
            unknown = np.full(len(curve.value), np.nan)
            lower, upper = (unknown if end is None else end for end in (curve.lower, curve.upper))
            columns = {"timestep": curve.timestep, "log_snr": curve.log_snr, "value": curve.value}
            parts.append(pandas.DataFrame({**when, **columns, "lower": lower, "upper": upper}))
        return pandas.concat(parts, ignore_index=True)

    def plot(self, metric: str, probe: str | None = None) -> Figure:
        """Return a matplotlib figure of a metric: its curves over training, with their ideal; or a scalar over steps.

        Args:
            probe: whose; default: the one that has it.

        Raises:
            ConfigurationError: there is no such metric, or several probes have it and ``probe`` is none of them.
        """
        found = self._with(metric)
        if probe not in found and (probe is not None or len(found) > 1):
            raise ConfigurationError(
                f"{metric!r} is a metric of {', '.join(found)}; say which: `run.plot({metric!r}, {list(found)[-1]!r})`."
            )
        records = found[probe or next(iter(found))]
        if metric in records[-1].scalars:
            return figure(scalar_chart(records, metric), records[-1].metric(metric).title)
        return curves_figure(thinned(records, _CURVES), [metric])

    def _with(self, metric: str) -> dict[str, list[ProbeRecord]]:
        """Return by probe the records that have a metric."""
        found = {
            probe: [record for record in records if metric in record.curves or metric in record.scalars]
            for probe, records in self.records.items()
        }
        if found := {probe: records for probe, records in found.items() if records}:
            return found
        near = difflib.get_close_matches(metric, self.metrics, n=4, cutoff=0.3)
        raise ConfigurationError(
            f"{self.directory} has no metric {metric!r}. Did you mean {', '.join(near)}? `run.metrics` lists them all."
        )

    def __repr__(self) -> str:
        probes = ", ".join(f"{len(records)} {probe}" for probe, records in self.records.items())
        return f"{self.directory}: {probes}\n{self.verdict.in_full}"

    def _repr_html_(self) -> str:
        css = (files("ldmprobe.tracking") / "report.css").read_text(encoding="utf-8")
        rows = "".join(f"<li><code>{escape(name)}</code> {escape(title)}</li>" for name, title in self.metrics.items())
        # A document of its own, so that the page's style reaches nothing else of the notebook.
        page = (
            f"<style>{css} body {{ padding: 12px 16px; background: var(--card); }}</style>"
            f"<h1>{escape(self.directory.name)}</h1>{verdict_html(self.verdict)}"
            f"<details><summary>Metrics for run.frame and run.plot</summary><ul>{rows}</ul></details>"
        )
        return f'<iframe srcdoc="{escape(page)}" width="100%" height="400" style="border: 0"></iframe>'
