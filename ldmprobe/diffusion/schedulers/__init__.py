"""Noise schedules read from live diffusers schedulers: one file for each kind of process."""

from ldmprobe.diffusion.schedulers.base import DiffusersSchedule
from ldmprobe.diffusion.schedulers.exploding import EDMSchedule, ScoreSDESchedule
from ldmprobe.diffusion.schedulers.flow import FlowMatchSchedule
from ldmprobe.diffusion.schedulers.variance_preserving import VariancePreservingSchedule

__all__ = ["DiffusersSchedule", "EDMSchedule", "FlowMatchSchedule", "ScoreSDESchedule", "VariancePreservingSchedule"]
