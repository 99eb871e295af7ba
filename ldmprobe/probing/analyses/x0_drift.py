"""X0Drift: how much the prediction of the clean latents changes from step to step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.io.metric import Metric
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory


class X0Drift(Analysis):
    """The mean squared change of x̂_0 from one step to the next; NaN at the first step."""

    metrics = (
        Metric(
            "x0_drift", "Change of the predicted clean latents",
            "Mean squared change of x̂_0 since the step before: at which noise levels the denoiser still makes up its"
            " mind.",
            "squared change per dimension", log=True,
        ),
    )  # fmt: skip

    def begin(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.last: Tensor | None = None
        self.values: list[float] = []

    def update(self, step: SamplingStep) -> None:
        change = torch.zeros(2, dtype=torch.float64, device=step.x0.device)  # Σ, n
        if self.last is not None:
            change[0], change[1] = (step.x0 - self.last).double().pow(2).sum(), step.x0.numel()
        total, count = self.trajectory.ranks.all_reduce_sum(change).tolist()
        self.values.append(total / count if count else float("nan"))
        self.last = step.x0

    def finish(self) -> Findings:
        return Findings(curves={"x0_drift": self.trajectory.curve(np.array(self.values))})
