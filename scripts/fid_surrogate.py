"""Does held-out skill, which needs no samples, say what FID a method will have? A regression over a study's runs.

    python scripts/fid_surrogate.py runs/digits_study runs/cifar10_study

Of every run ``DIR/runs/METHOD/seed-K``, at its end: the mean held-out skill in four bands of log-SNR, the skill weighted
by σ² = sigmoid(−log-SNR), which is what an error moves of a sample, and the bound; and ln FID, regressed on them
linearly. R² is of all runs, and of each method's runs by what was fitted to the other methods (left out), 1 − squared
error ÷ variance: below 0 the others' mean FID says more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from ldmprobe import RecordStore
from ldmprobe.analysis.bands import bands_of
from ldmprobe.errors import ConfigurationError

BANDS = 4  # from the noisiest on, up to log-SNR 6
FloatArray = NDArray[np.float64]


def read(study: Path) -> tuple[dict[str, FloatArray], FloatArray, list[str]]:
    """Return by name what FID is predicted from, (R, F) each, ln FID (R,) and the method of each run."""
    rows, target, methods = [], [], []
    for run in sorted(study.glob("runs/*/seed-*")):
        denoising, quality = (RecordStore(run).read(probe) for probe in ("denoising", "quality"))
        if not denoising or not quality or denoising[-1].step != quality[-1].step or not (run / "finished").exists():
            continue
        skill = denoising[-1].curves["denoising_skill"]
        bands = bands_of(skill.log_snr)[:BANDS]
        weight = 1 / (1 + np.exp(skill.log_snr))
        rows.append(
            [
                *(skill.value[band.inside].mean() for band in bands),
                (weight * skill.value).sum() / weight.sum(),
                denoising[-1].scalars["denoising_bound_nats"],
            ]
        )
        target.append(np.log(quality[-1].scalars["fid"]))
        methods.append(run.parent.name)
    if len(set(methods)) < 4:
        raise ConfigurationError(f"{study} has finished runs of {len(set(methods))} methods; expected at least 4.")
    values = np.array(rows)
    names = [f"skill at {band.low:+g} … {band.high:+g}" for band in bands]
    alone = {name: values[:, [k]] for k, name in enumerate([*names, "σ²-weighted skill", "bound"])}
    return {**alone, "four bands together": values[:, :BANDS]}, np.array(target), methods


def determination(target: FloatArray, predicted: FloatArray) -> float:
    return float(1 - ((target - predicted) ** 2).sum() / ((target - target.mean()) ** 2).sum())


def main(args: argparse.Namespace) -> None:
    for study in args.studies:
        predictors, target, methods = read(study)
        print(f"\n{study.name}: {len(target)} runs of {len(set(methods))} methods, FID {np.exp(target.min()):.3g} … "
              f"{np.exp(target.max()):.3g}\n\n| predicted from | slope | R² | R², methods left out |\n|---|---|---|---|")  # fmt: skip
        for name, x in predictors.items():
            fitted = LinearRegression().fit(x, target)
            left_out = cross_val_predict(LinearRegression(), x, target, groups=methods, cv=LeaveOneGroupOut())
            slopes = ", ".join(f"{slope:+.2g}" for slope in fitted.coef_)
            print(
                f"| {name} | {slopes} | {determination(target, fitted.predict(x)):.2f} "
                f"| {determination(target, left_out):.2f} |"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+", help="folders that scripts/reweighting_study.py has written")
    try:
        main(parser.parse_args())
    except ConfigurationError as error:
        parser.exit(2, f"fid_surrogate: error: {error}\n")
    sys.exit(0)
