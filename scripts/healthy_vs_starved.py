"""The README's picture: a healthy run beside one whose late (clean) timesteps were starved, otherwise alike.

    python scripts/healthy_vs_starved.py --out docs/healthy_vs_starved.png

Trains configs/digits.yaml twice, into runs/healthy and runs/starved (eight minutes on two cores), but with timesteps drawn
evenly, of which the starved one draws those below 150 a hundred times less often; runs that are there already are used.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.probing.judge import judge
from ldmprobe.probing.verdict import Verdict
from ldmprobe.tracking.charts.static import png
from ldmprobe.tracking.style import IDEAL, WARNING, step_color

RIBBON = {"✓": "#2b7a55", "•": "#9a6700", "▲": "#b3302a", "?": "#5c6470"}
ROOT = Path(__file__).resolve().parent.parent
BAND = (0, 150)
HEALTHY = ["--model.init_args.timesteps=ldmprobe.UniformTimesteps"]
STARVED = [
    "--model.init_args.timesteps.class_path=ldmprobe.StarvedBand",
    f"--model.init_args.timesteps.init_args.start={BAND[0]}",
    f"--model.init_args.timesteps.init_args.stop={BAND[1]}",
    "--model.init_args.timesteps.init_args.share=0.01",
]


def train(name: str, *overrides: str) -> RecordStore:
    run_dir = ROOT / "runs" / name
    if not (run_dir / "report.html").exists():
        command = [sys.executable, "-m", "ldmprobe.cli", "fit", "--config", "configs/digits.yaml"]
        subprocess.run([*command, "--trainer.logger=false", f"--run_dir={run_dir}", *overrides], cwd=ROOT, check=True)
    return RecordStore(run_dir)


def draw(runs: dict[str, RecordStore]) -> Figure:
    figure = Figure(figsize=(11.5, 7.4), layout="constrained")
    layout = figure.add_gridspec(4, 3, height_ratios=[0.32, 3, 0.32, 3])
    axes = np.array([[figure.add_subplot(layout[2 * k + 1, column]) for column in range(3)] for k in range(2)])
    for below, above in zip(axes[1], axes[0], strict=True):
        below.sharex(above)
        below.sharey(above)
    for k, (row, (name, store)) in enumerate(zip(axes, runs.items(), strict=True)):
        ribbon(figure.add_subplot(layout[2 * k, :]), judge(store.read()))
        ddim, denoising = store.read("ddim"), store.read("denoising")
        curves(row[0], ddim, "step_kl")
        ideal = ddim[-1].curves["step_kl_ideal"]
        row[0].plot(ideal.log_snr, ideal.value, color=IDEAL, ls="--", lw=1.4, label="ideal")
        row[0].set(yscale="log", ylim=(1e-6, 5))
        curves(row[1], denoising[1:], "denoising_skill")
        row[1].axhline(0, color=IDEAL, ls="--", lw=1.2)
        row[1].set(ylim=(-1.2, 0.6))
        curves(row[2], denoising[1:], "calibration_residual")
        row[2].axhline(0, color=IDEAL, ls="--", lw=1.2)
        row[2].set(ylim=(-0.05, 0.5))
        row[0].set_ylabel(f"{name}\n", fontsize=12, fontweight="bold")
        low, high = band_log_snr(denoising[-1])
        for axis in row:
            axis.spines[["top", "right"]].set_visible(False)
            if name != "healthy":
                axis.axvspan(low, high, color=WARNING, alpha=0.1, lw=0)
    titles = (
        "KL per denoiser pass\n[nats per dimension]",
        "denoising skill\n(0: linear filter)",
        "calibration residual R\n(recoverable share of loss)",
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=11)
        axis.tick_params(labelbottom=False)
    for axis in axes[1]:
        axis.set_xlabel("log-SNR (noisy to clean)")
    axes[0, 0].legend(frameon=False, fontsize=9, loc="upper left")
    note = (
        "bars: the verdict by log-SNR   lines: training step, light (early) to dark (late)   shaded: starved timesteps"
    )
    figure.text(0.99, 0.0, note, ha="right", va="bottom", fontsize=8.5, color="#555")
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
    return figure


def ribbon(axis: Axes, verdict: Verdict) -> None:
    """Draw the state of each band of noise levels, as the page does."""
    for k, band in enumerate(verdict.bands):
        axis.barh(0, 0.985, left=k, height=1, align="edge", color=RIBBON[band.symbol])
        told = f"{band.symbol} {band.name}   {band.state.value}"
        axis.text(k + 0.49, 0.47, told, ha="center", va="center", color="white", fontsize=9)
    axis.set(xlim=(0, len(verdict.bands)), ylim=(0, 1))
    axis.set_axis_off()


def curves(axis, records: list[ProbeRecord], metric: str) -> None:
    for i, record in enumerate(records):
        curve = record.curves[metric]
        last = i == len(records) - 1
        value = np.where(curve.value > 0, curve.value, np.nan) if metric == "step_kl" else curve.value
        axis.plot(curve.log_snr, value, color=step_color(i / max(len(records) - 1, 1)), lw=2.2 if last else 1.1)


def band_log_snr(record: ProbeRecord) -> tuple[float, float]:
    curve = record.curves["denoising_mse"]
    inside = curve.log_snr[(curve.timestep >= BAND[0]) & (curve.timestep < BAND[1])]
    return float(inside.min()) - 0.375, float(inside.max()) + 0.375


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    args = parser.parse_args()
    runs = {"healthy": train("healthy", *HEALTHY), "starved": train("starved", *STARVED)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(png(draw(runs), dpi=110))
    print(args.out)
