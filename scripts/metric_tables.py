"""Write docs/METRICS.md: what every metric of every probe means, from the tables that the probes declare.

python scripts/metric_tables.py
"""

from __future__ import annotations

from pathlib import Path

from ldmprobe.callbacks import timestep_balancer, training_clock, training_loss
from ldmprobe.probing import (
    analyses,
    averages,
    cascade,
    classification,
    denoising_record,
    forgetting,
    gradient,
    likelihood,
    lora_strength,
    memorization_record,
    objective,
    precision,
    quality,
    reconstruction,
    relevance,
    sampling_probe,
)
from ldmprobe.probing.analyses import Analysis

OUT = Path(__file__).resolve().parent.parent / "docs" / "METRICS.md"
HEAD = """# Metrics

<!-- Written by scripts/metric_tables.py from the tables that the probes declare. -->

A record's numbers, by probe. Loggers are sent *headlines* under `probe_<probe>/`, a curve as one number for each band of log-SNR; with `detail: levels`
also every level of every headline and detail. The report shows headlines and, folded, details. All of it is in the records.

"""


def metric_tables() -> str:
    """Return the document."""
    kinds = [kind for kind in vars(analyses).values() if isinstance(kind, type) and issubclass(kind, Analysis)]
    tables = {
        "ddim, or another sampler": [*(metric for kind in kinds for metric in kind.metrics), *sampling_probe.METRICS],
        **{module.__name__.split(".")[-1].removesuffix("_record"): module.METRICS for module in (denoising_record, likelihood, memorization_record, gradient, precision, forgetting, lora_strength, averages, relevance, quality, cascade, reconstruction, classification, objective)},
        "training": training_loss.METRICS,
        "balance": timestep_balancer.METRICS,
        "clock": training_clock.METRICS,
    }  # fmt: skip
    parts = []
    for probe, metrics in tables.items():
        rows = [f"| `{each.name}` | {each.title}. {each.meaning} | {each.unit} | {each.shown} |" for each in metrics]
        parts.append("\n".join([f"## {probe}\n", "| name | meaning | unit | shown |", "|---|---|---|---|", *rows]))
    return HEAD + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    OUT.write_text(metric_tables(), encoding="utf-8")
