"""Analyses of sampling trajectories, a file each."""

from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory
from ldmprobe.probing.analyses.exposure import Exposure
from ldmprobe.probing.analyses.ideal_twins import IdealTwins
from ldmprobe.probing.analyses.inherited_error import InheritedError
from ldmprobe.probing.analyses.marginal_gap import MarginalGap
from ldmprobe.probing.analyses.one_step_error import OneStepError
from ldmprobe.probing.analyses.pca_scatter import PCAScatter
from ldmprobe.probing.analyses.samples import SampleImages
from ldmprobe.probing.analyses.step_kl import StepKL
from ldmprobe.probing.analyses.x0_drift import X0Drift

__all__ = [
    "Analysis",
    "Exposure",
    "Findings",
    "IdealTwins",
    "InheritedError",
    "MarginalGap",
    "OneStepError",
    "PCAScatter",
    "SampleImages",
    "StepKL",
    "Trajectory",
    "X0Drift",
]
