"""Probe records in Weights & Biases. The only file that imports wandb.

Scalars go through Lightning's logger with ``step=trainer.global_step`` and so share its ``trainer/global_step`` axis; media carry the same
column. Never ``experiment.log(step=…)``: wandb drops smaller steps silently.
"""

from __future__ import annotations

from typing import Any

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.pictures import Pictures


def log_media(logger: Any, pictures: Pictures) -> None:
    """Pictures, tables and line-series charts of a record, to Lightning's WandbLogger."""
    import wandb

    record = pictures.record
    media: dict[str, Any] = {}
    caption = f"training step {record.step}"
    if "pca" in record.scatters:
        media["probe/pca_scatter"] = wandb.Image(pictures.pca, caption=caption)
        media["probe/pca_table"] = _pca_table(record)
    if "step_kl" in record.curves:
        media["probe/step_kl_heatmap"] = wandb.Image(pictures.step_kl_heatmap, caption=caption)
        media["probe/step_kl_curves"] = _line_series(
            pictures, "step_kl", "step_kl_ideal", "KL per denoiser pass [nats/dim]"
        )
    if "denoising_mse" in record.curves:
        media["probe/denoising_mse_curves"] = _line_series(
            pictures, "denoising_mse", "denoising_mmse", "held-out squared ε-error"
        )
        media["probe/denoising_skill_curves"] = _line_series(pictures, "denoising_skill", None, "denoising skill")
    if "training_emphasis" in record.curves:
        for metric, title in (
            ("timestep_density", "p: share of draws per log-SNR"),
            ("loss_weight", "w: weight on the squared ε-error"),
            ("training_emphasis", "w·p: share of all weight per log-SNR"),
        ):
            media[f"probe/{metric}_curves"] = _line_series(pictures, metric, None, title)
    if "balance_density" in record.curves:
        for metric, title in (
            ("balance_progress", "held-out progress, nats per level and 1,000 steps"),
            ("balance_density", "density that the balancer draws by"),
        ):
            media[f"probe/{metric}_curves"] = _line_series(pictures, metric, None, title)
    if "forgetting_nats/base" in record.curves:
        for kind, data in (("base", "the base model's data"), ("new", "the new data")):
            title = f"change on {data}, nats per level"
            media[f"probe/forgetting_nats_{kind}_curves"] = _line_series(
                pictures, f"forgetting_nats/{kind}", None, title
            )
    if "samples" in record.images:
        media["probe/samples"] = wandb.Image(pictures.samples, caption=caption)
    if media:
        logger.experiment.log({**media, "trainer/global_step": record.step})


def start_error(error: BaseException) -> ConfigurationError | None:
    """What to tell the user if ``error`` is wandb's own: a run that could not start, for want of a network, a server or a key."""
    if not type(error).__module__.startswith("wandb."):
        return None
    reason = " ".join(str(error).split()).rstrip(".")
    return ConfigurationError(
        f"Weights & Biases could not start a run: {reason}. Set the logger's `offline: true` (and send the run later with "
        "`wandb sync`), or check the network, WANDB_BASE_URL and WANDB_API_KEY."
    )


def _line_series(pictures: Pictures, metric: str, ideal: str | None, title: str) -> Any:
    import wandb

    lines = [(f"step {record.step}", record.curves[metric]) for record in pictures.curves]
    if ideal is not None and ideal in pictures.record.curves:
        lines.append(("ideal", pictures.record.curves[ideal]))
    return wandb.plot.line_series(
        xs=[curve.log_snr.tolist() for _, curve in lines],
        ys=[curve.value.tolist() for _, curve in lines],
        keys=[name for name, _ in lines],
        title=title,
        xname="log-SNR",
        split_table=True,
    )


def _pca_table(record: ProbeRecord) -> Any:
    """One new table per probe: a growing one is frozen at its first version or costs quadratically."""
    import wandb

    labels = record.provenance.get("sample_labels")
    rows = []
    for name, kind in (("pca", "sample"), ("pca_real", "real")):
        for scatter in record.scatters.get(name, []):
            for i, (pc1, pc2) in enumerate(scatter.xy.tolist()):
                label = labels[i] if labels and kind == "sample" else -1
                rows.append([record.step, kind, scatter.timestep, i, label, pc1, pc2])
    table = wandb.Table(columns=["step", "kind", "timestep", "sample", "label", "pc1", "pc2"], data=rows[:1])
    table.data.extend(
        rows[1:]
    )  # of the first row's types; Table would infer them anew for each, which takes longer than all the rest
    return table
