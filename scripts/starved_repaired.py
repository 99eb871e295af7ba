"""A planted imbalance and its repair: timesteps below 150 are drawn a hundred times less often, then TimestepBalancer
takes over.

    python scripts/starved_repaired.py --out docs/starved_repaired.png

Trains the network of configs/studies/digits_base.yaml for 800 steps with the starved band (the balancer only watches),
and from that checkpoint 800 more, once left alone and once balanced; into runs/starved_left and runs/starved_balanced
(seven minutes on two cores; runs that are there already are used).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from healthy_vs_starved import BAND, band_log_snr
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.tracking.charts.static import png
from ldmprobe.tracking.style import ACCENT, IDEAL, WARNING, step_color

ROOT = Path(__file__).resolve().parent.parent
BEFORE, AFTER = 800, 1600


def starved(dry_run: bool) -> dict:
    """Return what is added to the base configuration."""
    band = {"start": BAND[0], "stop": BAND[1], "share": 0.01}
    base = {"class_path": "ldmprobe.StarvedBand", "init_args": band}
    sampler = {"class_path": "ldmprobe.BalancedTimesteps", "init_args": {"base": base}}
    balancer = {"class_path": "ldmprobe.callbacks.TimestepBalancer", "init_args": {"dry_run": dry_run}}
    return {"model": {"init_args": {"timesteps": sampler}}, "trainer": {"callbacks+": [balancer]}}


def train(run_dir: Path, max_steps: int, dry_run: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        added = Path(folder) / "starved.yaml"
        added.write_text(yaml.safe_dump(starved(dry_run)))
        configs = [f"--config={path}" for path in (ROOT / "configs/studies/digits_base.yaml", added)]
        command = [sys.executable, "-m", "ldmprobe.cli", "fit", *configs, f"--trainer.max_steps={max_steps}"]
        subprocess.run([*command, f"--run_dir={run_dir}", "--ckpt_path=last"], cwd=ROOT, check=True)


def both_runs() -> dict[str, RecordStore]:
    left, balanced = (ROOT / "runs" / f"starved_{name}" for name in ("left", "balanced"))
    if not left.exists():
        train(left, BEFORE, dry_run=True)
    if not balanced.exists():
        shutil.copytree(left, balanced)
    train(left, AFTER, dry_run=True)
    train(balanced, AFTER, dry_run=False)
    return {"left alone": RecordStore(left), "balanced": RecordStore(balanced)}


def draw(runs: dict[str, RecordStore]) -> Figure:
    figure = Figure(figsize=(11.5, 3.6), layout="constrained")
    skill, error, density = figure.subplots(1, 3)
    colors = {"left alone": WARNING, "balanced": ACCENT}
    denoising = {name: store.read("denoising") for name, store in runs.items()}
    before = next(record for record in denoising["balanced"] if record.step == BEFORE)
    skill.axhline(0, color=IDEAL, ls="--", lw=1.2)
    plot(skill, before, "denoising_skill", "#8a8f98", f"step {BEFORE}: starved so far")
    for name, records in denoising.items():
        plot(skill, records[-1], "denoising_skill", colors[name], f"step {AFTER:,}: {name}")
        shown = [record for record in records if record.step >= 200]
        error.plot([r.step for r in shown], [error_in_band(r) for r in shown], color=colors[name], lw=2, label=name)
    error.axvline(BEFORE, color="#8a8f98", lw=1, ls=":")
    decisions = [record for record in runs["balanced"].read("balance") if record.step >= BEFORE]
    for i, record in enumerate(decisions):
        plot(density, record, "balance_density", step_color(i / max(len(decisions) - 1, 1)), None)
    for axis in (skill, density):
        axis.axvspan(*band_log_snr(before), color=WARNING, alpha=0.1, lw=0)
        axis.set_xlabel("log-SNR (noisy to clean)")
    skill.set(title="denoising skill on held-out data", ylim=(-1.2, 0.6))
    error.set(title="held-out squared ε-error\nof the starved noise levels", xlabel="training step")
    density.set(title="what the balancer draws by\n(1 is even; dark to light: later)", ylim=(0, None))
    for axis in (skill, error):
        axis.legend(frameon=False, fontsize=8.5)
    for axis in (skill, error, density):
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10.5)
    return figure


def plot(axis, record: ProbeRecord, metric: str, color: str, label: str | None) -> None:
    curve = record.curves[metric]
    axis.plot(curve.log_snr, curve.value, color=color, lw=2, label=label)


def error_in_band(record: ProbeRecord) -> float:
    curve = record.curves["denoising_mse"]
    return float(curve.value[(curve.timestep >= BAND[0]) & (curve.timestep < BAND[1])].mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    args = parser.parse_args()
    runs = both_runs()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(png(draw(runs), dpi=110))
    for name, store in runs.items():
        records = {record.step: record for record in store.read("denoising")}
        told = ", ".join(
            f"step {step:,}: {records[step].scalars['denoising_bound_nats']:.1f} nats, error of the starved levels "
            f"{error_in_band(records[step]):.3f}"
            for step in (BEFORE, AFTER)
        )
        print(f"{name}: {told}")
    print(args.out)
