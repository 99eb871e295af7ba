"""Callbacks: each decides when, calls a probe, and hands the record on.

Importable as ``ldmprobe.callbacks``; the files stand at the top of the repository, in ``callbacks/``.
"""

from ldmprobe.callbacks.classifier_probe import ClassifierProbe
from ldmprobe.callbacks.denoising_probe import DenoisingProbe
from ldmprobe.callbacks.exact_resume import ExactResume
from ldmprobe.callbacks.forgetting import Forgetting
from ldmprobe.callbacks.gradient_probe import GradientProbe
from ldmprobe.callbacks.likelihood_probe import LikelihoodProbe
from ldmprobe.callbacks.logger_guard import LoggerGuard
from ldmprobe.callbacks.lora_strength import LoRAStrength
from ldmprobe.callbacks.memorization_probe import MemorizationProbe
from ldmprobe.callbacks.non_finite import NonFinite
from ldmprobe.callbacks.post_hoc_ema import PostHocEMA
from ldmprobe.callbacks.precision_probe import PrecisionProbe
from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.callbacks.reconstruction_probe import ReconstructionProbe
from ldmprobe.callbacks.report_writer import ReportWriter
from ldmprobe.callbacks.sample_quality import SampleQuality
from ldmprobe.callbacks.sampling_probe import DDIMProbe, SamplingProbe
from ldmprobe.callbacks.stop_rule import StopRule
from ldmprobe.callbacks.timestep_balancer import TimestepBalancer
from ldmprobe.callbacks.training_clock import TrainingClock
from ldmprobe.callbacks.training_loss import TrainingLoss
from ldmprobe.callbacks.training_objective import TrainingObjective

__all__ = [
    "ClassifierProbe",
    "DDIMProbe",
    "DenoisingProbe",
    "ExactResume",
    "Forgetting",
    "GradientProbe",
    "LikelihoodProbe",
    "LoRAStrength",
    "LoggerGuard",
    "MemorizationProbe",
    "NonFinite",
    "PostHocEMA",
    "PrecisionProbe",
    "ProbeCallback",
    "ReconstructionProbe",
    "ReportWriter",
    "SampleQuality",
    "SamplingProbe",
    "StopRule",
    "TimestepBalancer",
    "TrainingClock",
    "TrainingLoss",
    "TrainingObjective",
]
