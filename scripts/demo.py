"""The demo: trains on real handwritten digits, probes on the way, judges the samples, and says where everything is.

    make demo          (or: python scripts/demo.py)

Three to four minutes on two cores. Everything is in ``runs/digits/``; an earlier demo there is moved aside, never
overwritten.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "runs" / "digits"


def main() -> int:
    if RUN.exists():
        aside = RUN.with_name(f"digits-{time.strftime('%Y%m%d-%H%M%S', time.localtime(RUN.stat().st_mtime))}")
        RUN.rename(aside)
        print(f"An earlier demo was moved to {aside.relative_to(ROOT)}.")
    started = time.monotonic()
    run("-m", "ldmprobe.cli", "fit", "--config", "configs/digits.yaml")
    minutes = (time.monotonic() - started) / 60
    checkpoint = "runs/digits/checkpoints/last.ckpt"
    fast = ("--sampler", "dpmpp-2m", "--grid", "measured", "--grid-settings", "record=runs/digits", "--num-steps", "10")
    samples = ("--out", "runs/digits/samples.png", "--num-samples", "100", "--guidance-scale", "1.5")
    run("-m", "ldmprobe.cli", "sample", checkpoint, *samples, *fast)
    run("scripts/judge_digits.py", checkpoint)
    offline = next((RUN / "wandb").glob("offline-run-*"))
    print(
        f"\nTrained in {minutes:.1f} minutes. Look at\n"
        f"  the report    {RUN.relative_to(ROOT) / 'report.html'}   (one page, open it in a browser)\n"
        f"  100 samples   {RUN.relative_to(ROOT) / 'samples.png'}\n"
        f"  the records   {RUN.relative_to(ROOT) / 'probes'}/*.parquet   (pandas, DuckDB, datasets)\n"
        f"Send the offline W&B run with\n"
        f"  {VENV_BIN}wandb sync {offline.relative_to(ROOT)}"
    )
    return 0


VENV_BIN = ".venv/bin/" if Path(sys.prefix) == ROOT / ".venv" else ""


def run(*arguments: str) -> None:
    """One step, with its output; ends the demo if it fails."""
    completed = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False)
    if completed.returncode != 0:
        sys.exit(completed.returncode)


if __name__ == "__main__":
    sys.exit(main())
