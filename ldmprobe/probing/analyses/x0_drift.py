"""X0Drift: how much the denoiser changes its mind."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory


class X0Drift(Analysis):
    """Mean squared change of x̂_0 from one step to the next, per dimension: curve ``x0_drift`` (the first step has none: NaN)."""

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
