"""What the optimizer sees of the noise levels: the product of loss weight and sampling density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.timesteps import TimestepSampler
from ldmprobe.diffusion.weighting import LossWeighting


@dataclass(frozen=True)
class TimestepObjective:
    """A loss weight and a timestep sampler on a schedule.

    Attributes:
        normalize: divide the weights by their mean under the sampling density. Without it a weighting is also a change
            of learning rate: on Stable Diffusion's schedule the mean runs from .50 (sigmoid) and .63 (P2) over 3.0
            (debiased) to 21 (EDM) in ε-units.
    """

    schedule: NoiseSchedule
    weighting: LossWeighting
    sampler: TimestepSampler
    normalize: bool = True

    def probabilities(self) -> Tensor:
        """p(t), shape (T,), float64."""
        return self.sampler.probabilities(self.schedule)

    def weights(self) -> Tensor:
        """w(t), shape (T,), float64: what the squared error of the network's own prediction is multiplied by, sampler's
        factor included.
        """
        factor, weights = self._factor_and_weights()
        return factor * weights

    def losses(self, errors: Tensor, t: Tensor) -> Tensor:
        """The loss of each sample (N,) from the squared error of its prediction and its timestep.

        The sampler's factor multiplies all of it: an uncertainty learned along would take up a factor on the error, and
        cancel it.
        """
        tables = (*self._factor_and_weights(), self.schedule.log_snr)
        factor, weights, log_snr = (table[t.cpu()].to(errors) for table in tables)
        losses: Tensor = factor * self.weighting(errors, weights, log_snr)
        return losses

    def _factor_and_weights(self) -> tuple[Tensor, Tensor]:
        """The sampler's factor and the weights, each (T,); normalized, both the factor and their product have mean
        1.
        """
        factor = self.sampler.loss_factor(self.schedule)
        weights = self.weighting.prediction_weight(self.schedule.log_snr, self.schedule.prediction)
        if self.normalize:
            p = self.probabilities()
            factor = factor / (p * factor).sum()
            weights = weights / (p * factor * weights).sum()
        return factor, weights


@runtime_checkable
class HasObjective(Protocol):
    """A LightningModule that says how it weighs and draws timesteps."""

    objective: TimestepObjective


def objective_of(module: object) -> TimestepObjective | None:
    """Return a module's ``objective``; None where it has none of this kind."""
    found = module.objective if isinstance(module, HasObjective) else None
    return found if isinstance(found, TimestepObjective) else None
