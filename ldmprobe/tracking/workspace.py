"""A saved view of Weights & Biases for the runs of a project: sections of panels, from the metrics that records
declare.

It is built without a connection by ``wandb-workspaces``, an extra; only saving it takes a key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ldmprobe.errors import ConfigurationError, needing
from ldmprobe.io.metric import Metric
from ldmprobe.io.store import RecordStore
from ldmprobe.tracking.history import RunningHistory, comparable_series
from ldmprobe.tracking.pictures import Pictures
from ldmprobe.tracking.scalars import VERDICT_METRICS, Number, key, numbers
from ldmprobe.tracking.wandb import PAGE, STEP, image_names

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import LinePlot
    from wandb_workspaces.workspaces import Workspace


def workspace_of(run_dir: str | Path, entity: str, project: str) -> Workspace:
    """Return a view with sections for what the probes of a run have sent: the verdict, numbers over training, noise
    levels by band, and pictures. What else a run sends stands below, as W&B itself lays it out.

    Raises:
        ConfigurationError: there are no records, or wandb-workspaces is not installed.
    """
    with needing("wandb_workspaces", "`ldmprobe workspace`"):
        from wandb_workspaces.reports.v2 import MediaBrowser
        from wandb_workspaces.workspaces import (
            RunsetSettings,
            Section,
            SectionPanelSettings,
            Workspace,
            WorkspaceSettings,
        )
    store = RecordStore(run_dir)
    records = [series[-1] for series in comparable_series(store).values()]
    if not records:
        raise store.no_records
    verdict = [Number(metric.name, metric, math.nan) for metric in VERDICT_METRICS]
    found = {
        "Verdict": [*_plots("verdict", verdict), MediaBrowser(title="report", media_keys=[PAGE])],
        "Over training": [plot for each in records for plot in _plots(each.probe, numbers(replace(each, curves={})))],
        "By noise level": [plot for each in records for plot in _plots(each.probe, numbers(replace(each, scalars={})))],
        "Pictures": [
            MediaBrowser(title=f"{each.probe}: {each.metric(name).title}", media_keys=[key(each, name)])
            for each in records
            for name in image_names(Pictures(each, RunningHistory(store)))
        ],
    }
    return Workspace(
        entity=entity,
        project=project,
        name="ldmprobe",
        sections=[
            Section(name=name, panels=panels, is_open=True, panel_settings=SectionPanelSettings(x_axis=STEP))
            for name, panels in found.items()
            if panels
        ],
        settings=WorkspaceSettings(x_axis=STEP, group_by_prefix="first"),
        runset_settings=RunsetSettings(pinned_columns=["run:displayName", "summary:verdict/state"]),
        auto_generate_panels=True,
    )


def as_json(workspace: Workspace) -> str:
    """Return a view as JSON: as W&B keeps it, under the names of its project and of whom that belongs to."""
    return str(workspace._model.model_dump_json(by_alias=True, exclude_none=True, indent=2))


def saved(workspace: Workspace) -> str:
    """Save a view in its project, and return where it is to be looked at.

    Raises:
        ConfigurationError: there is no key, no connection or no such project.
    """
    try:
        workspace.save()
    except Exception as error:
        raise ConfigurationError(
            f"The workspace was not saved in {workspace.entity}/{workspace.project}: {' '.join(str(error).split())} "
            "Without --save it is printed instead."
        ) from error
    return str(workspace.url)


def _plots(probe: str, found: Iterable[Number]) -> list[LinePlot]:
    """Return a plot over training for each headline, with a line for each of its bands or members."""
    from wandb_workspaces.reports.v2 import LinePlot

    lines: dict[Metric, list[str]] = {}
    for number in found:
        if number.metric.shown == "headline":
            lines.setdefault(number.metric, []).append(number.key)
    return [
        LinePlot(
            title=f"{probe}: {metric.title}", x=STEP, y=names, title_y=metric.unit or None, log_y=metric.log or None
        )
        for metric, names in lines.items()
    ]
