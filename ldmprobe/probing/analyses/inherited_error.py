"""InheritedError: how much of the samples' final error comes from which part of the chain."""

from __future__ import annotations

import numpy as np

from ldmprobe.analysis.moments import PairedMoments
from ldmprobe.diffusion.trajectory import SamplingStep, sampling_steps
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory, gap_to_real
from ldmprobe.probing.draws import Draws
from ldmprobe.probing.sampling import step_noise


class InheritedError(Analysis):
    """Sample chains that start not from noise but from *real* latents noised to several levels, and compare where they
    end.

    Costs about ``num_levels``/2 sampling runs of ``num_latents``; not among the default analyses. Needs real latents;
    the fewer there are, the wider the interval.

    Args:
        num_levels: how many, evenly spaced in sampling steps.
        num_latents: held-out latents, at most as many as the probe was given.
    """

    metrics = (
        Metric(
            "gap_from_level", "Error inherited from the levels above",
            "KL of the final latents from real ones, over the level that the chains started from, with a 95 % "
            "jackknife interval. A chain inherits nothing from above its start, so the fall from one level to the "
            "next is what the steps between them add.",
            "nats per dimension", good="lower", log=True,
        ),
    )  # fmt: skip

    def __init__(self, num_levels: int = 4, num_latents: int = 512) -> None:
        check_numbers("InheritedError", 1, num_levels=num_levels)
        check_numbers("InheritedError", 32, num_latents=num_latents)
        self.num_levels, self.num_latents = num_levels, num_latents

    def begin(self, trajectory: Trajectory) -> None:
        if trajectory.reference is None or trajectory.held_out is None:
            raise ConfigurationError("InheritedError needs real latents; give the probe data.")
        self.trajectory = trajectory

    def update(self, step: SamplingStep) -> None:
        """The chains from noise are not needed."""

    def finish(self) -> Findings:
        trajectory, grid, ranks = self.trajectory, self.trajectory.grid, self.trajectory.ranks
        assert trajectory.held_out is not None
        assert trajectory.reference is not None
        model, basis = trajectory.model, trajectory.reference.basis
        number = min(self.num_latents, len(trajectory.held_out.latents))
        mine = ranks.share(number)
        draws = Draws.of(trajectory.held_out, number, 0, model.device, ranks, stream=4)
        predict = model.predictor(draws.condition, trajectory.sampling.batch_size, trajectory.sampling.guidance)
        chain_noise = step_noise(model, draws.image.tolist(), seed=0)
        starts = sorted({round(k) for k in np.linspace(0, grid.num_steps, self.num_levels, endpoint=False)})
        alpha, sigma = float(grid.alpha_s[-1]), float(grid.sigma_s[-1])
        rows = []
        for start in starts:
            z = float(grid.alpha_t[start]) * draws.z0 + float(grid.sigma_t[start]) * draws.noise
            program = trajectory.sampling.sampler.program(grid.after(start))
            for step in sampling_steps(predict, z, program, model.schedule.prediction, chain_noise):
                z = step.z_s
            end = basis.rotate(z[: len(mine)])
            moments = PairedMoments.from_samples(end, end, mine).summed(ranks.all_reduce_sum)
            rows.append(gap_to_real(moments, basis, alpha, sigma)[:, 0])
        value, lower, upper = np.array(rows).T
        levels = trajectory.timesteps[starts], grid.log_snr[starts].numpy()
        return Findings(curves={"gap_from_level": Curve(*levels, value, lower, upper)})
