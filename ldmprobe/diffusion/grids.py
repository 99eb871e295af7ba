"""Which noise levels a sampler visits."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ldmprobe.diffusion.schedule import NoiseSchedule, SamplingGrid
from ldmprobe.types import PlainValues


class Grid(ABC):
    """A rule that lays S sampling steps on a noise schedule."""

    @abstractmethod
    def levels(self, schedule: NoiseSchedule, num_steps: int) -> SamplingGrid:
        """Return the levels of ``num_steps`` steps.

        Raises:
            ConfigurationError: the schedule has no such levels.
        """

    @abstractmethod
    def provenance(self, schedule: NoiseSchedule) -> PlainValues:
        """Return what a record says of the rule, as plain values."""


class ScheduleGrid(Grid):
    """The levels that are customary for the schedule: those of diffusers for one that was read from a scheduler.

    Args:
        timestep_spacing: "leading", "trailing" or "linspace"; default: the scheduler's own.
    """

    def __init__(self, timestep_spacing: str | None = None) -> None:
        self.timestep_spacing = timestep_spacing

    def levels(self, schedule: NoiseSchedule, num_steps: int) -> SamplingGrid:
        return schedule.native_grid(num_steps, self.timestep_spacing)

    def provenance(self, schedule: NoiseSchedule) -> PlainValues:
        return {"timestep_spacing": self.timestep_spacing or schedule.timestep_spacing}
