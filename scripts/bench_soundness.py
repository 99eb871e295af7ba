"""Is what the probes say true? Writes the tables of docs/MEASUREMENT.md.

    python scripts/bench_soundness.py golden
    python scripts/bench_soundness.py estimators                       (five minutes on two cores)
    python scripts/bench_soundness.py optimum                          (three minutes on two cores)
    python scripts/bench_soundness.py perfect --seeds 3                (ten minutes on two cores)
    python scripts/bench_soundness.py faults --data digits --seeds 5 --healthy 8 --out runs/faults
    python scripts/bench_soundness.py faults --data PARQUET_FOLDER --image-column img --out runs/faults
                                                                       (quarter of an hour a data set)
    python scripts/bench_soundness.py single                           (five minutes on two cores)

golden      our sampling path and closed forms against diffusers with the exact denoiser of Gaussian data
estimators  bias and coverage of the KL, over sample numbers, dimensions, truths, spectra and tails
optimum     what the finite number of real latents adds to a perfect denoiser's skill, without the noise of
            held-out draws
perfect     perfect denoisers of Gaussian data, over spectra, dimensions and sizes of the reference: is any accused?
faults      planted faults: is each detected (z ≥ 3 against healthy runs' own spread) and located in the right band
            of log-SNR?
single      faults put into a perfect denoiser: does the header of one probe of one run tell of them, and of none
            where there are none?

The experiments are in soundness/, the denoisers in known_denoisers.py, the faults in planted_faults.py; what verdicts make
of both is bench_verdict.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from soundness.estimators import estimators
from soundness.faults import faults
from soundness.golden import golden
from soundness.perfect import optimum, perfect
from soundness.single import single

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("golden").set_defaults(run=golden)
    command = commands.add_parser("estimators")
    command.add_argument("--repeats", type=int, default=200)
    command.set_defaults(run=estimators)
    for run, seeds in ((optimum, 16), (perfect, 10)):
        command = commands.add_parser(run.__name__)
        command.add_argument("--seeds", type=int, default=seeds)
        command.set_defaults(run=run)
    planted = commands.add_parser("faults")
    planted.add_argument("--data", default="digits", help='"digits", "shapes", or a dataset as ImageData takes it')
    planted.add_argument("--image-column", default="image")
    planted.add_argument("--seeds", type=int, default=5)
    planted.add_argument("--healthy", type=int, default=8)
    planted.add_argument("--steps", type=int, default=600)
    planted.add_argument("--processes", type=int, default=2)
    planted.add_argument("--out", type=Path, default=Path("runs/faults"))
    planted.set_defaults(run=faults)
    alone = commands.add_parser("single")
    alone.add_argument("--runs", type=int, default=10, help="of each fault")
    alone.add_argument("--healthy", type=int, default=60)
    alone.set_defaults(run=single)
    settings = vars(parser.parse_args())
    run = settings.pop("run")
    if settings.pop("command") not in ("golden", "faults"):  # faults has processes of its own
        torch.set_num_threads(1)
    run(**settings)
