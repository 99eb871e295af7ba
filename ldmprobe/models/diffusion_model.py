"""DiffusionModel: the pieces a probe needs, taken from a LightningModule in training, a checkpoint, or a pretrained
pipeline.

A user's own LightningModule is probed by returning one of these from a method called ``diffusion_model``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.samplers import Denoise
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.trajectory import Predict
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import Conditioning, Unconditional
from ldmprobe.models.denoiser import Condition, Denoiser, as_denoiser
from ldmprobe.models.device import is_out_of_memory
from ldmprobe.models.guidance import Answer, Asked, Guidance
from ldmprobe.models.wrapper import check_schedule
from ldmprobe.types import PlainValues


@dataclass
class DiffusionModel:
    """A denoiser with its noise schedule, latent shape, codec and conditioning.

    Attributes:
        network: the denoiser network, a diffusers model or any module that follows the Denoiser protocol.
        schedule: its noise schedule, with what the network answers; a scheduler of diffusers is read.
        latent_shape: (C, H, W).
        codec: pixels ↔ latents; identity by default.
        conditioning: none by default.
        weights: which weights these are, such as "ema" or "raw"; goes into the record.
        trained_steps: optimizer steps behind these weights, where known.
        trained_on: a summary of the data that they were trained on, where known (``DataIdentity.summary``).
        fitting_batch_size: how many samples a probe's pass had memory for, once one ran out of it.
    """

    network: nn.Module
    schedule: NoiseSchedule
    latent_shape: tuple[int, ...]
    codec: LatentCodec = field(default_factory=LatentCodec)
    conditioning: Conditioning = field(default_factory=Unconditional)
    weights: str = "raw"
    trained_steps: int = 0
    trained_on: PlainValues = field(default_factory=dict)
    fitting_batch_size: int | None = field(default=None, init=False)
    _adapted: tuple[nn.Module, Denoiser] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.schedule = as_schedule(self.schedule)
        check_schedule(self.network, self.schedule)
        self.conditioning.use_codec(self.codec)

    @property
    def device(self) -> torch.device:
        held = chain(self.network.parameters(), self.network.buffers())
        return next(held, torch.empty(0)).device  # a network may be code alone

    @property
    def modules(self) -> list[nn.Module]:
        """Return everything whose train/eval mode a probe sets and restores."""
        return [self.network, self.codec, self.conditioning]

    @property
    def _denoise(self) -> Denoiser:
        """The network's adapter, made once for each network."""
        if self._adapted is None or self._adapted[0] is not self.network:
            self._adapted = self.network, as_denoiser(self.network)
        return self._adapted[1]

    def predict(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the network's answer at z_t (N, C, H, W), told t (N,), in the dtype of ``z_t``; in training, too."""
        # A half-precision network samples in float32 all the same.
        answer = self._denoise(z_t, t, condition)
        if answer.shape != z_t.shape:
            raise ConfigurationError(
                f"{type(self.network).__name__} answers latents of shape {tuple(z_t.shape)} with "
                f"{tuple(answer.shape)}; expected the same shape. One that also predicts a variance has to leave it "
                "out."
            )
        return answer.to(z_t.dtype)

    def predictor(
        self, condition: Condition, batch_size: int, guidance: Guidance | None = None, sample_ids: Tensor | None = None
    ) -> Predict:
        """Return (z_t, question) → the network's answer, for the samples of ``condition``; at most ``batch_size`` of
        them at once, fewer where memory runs out.

        Args:
            sample_ids: (N,), their numbers, for a guidance that has something of its own for each.
        """
        made: tuple[Guidance, Answer] | None = None  # once for all levels with one guidance

        def answer_at(log_snr: float) -> Answer:
            nonlocal made
            if guidance is None:
                return self._answer
            own = guidance.at(log_snr)
            if made is None or made[0] is not own:
                made = own, own.guide(self._answer, self)
            return made[1]

        def predict(z_t: Tensor, question: Denoise) -> Tensor:
            asked = self._asked(z_t, question.model_time, question.alpha, question.sigma, sample_ids)
            return self._in_chunks(answer_at(question.log_snr), z_t, asked, condition, batch_size)

        return predict

    def x0_and_epsilon(
        self, z_t: Tensor, timestep: float, alpha: float, sigma: float, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """Return (x̂_0, ε̂) at z_t = α x_0 + σ ε (N, C, H, W), all at one ``timestep`` as the network is told it,
        without guidance; in chunks where memory runs out.
        """
        asked = self._asked(z_t, timestep, alpha, sigma)
        answer = self._in_chunks(self._answer, z_t, asked, condition, batch_size=len(z_t))
        return self.schedule.prediction.x0_and_epsilon(answer, z_t, alpha, sigma)

    def _answer(self, z_t: Tensor, asked: Asked, condition: Condition) -> Tensor:
        """Return ``predict`` as a guidance is given it."""
        return self.predict(z_t, asked.timesteps, condition)

    def _asked(
        self, z_t: Tensor, timestep: float, alpha: float, sigma: float, sample_ids: Tensor | None = None
    ) -> Asked:
        told = torch.full((len(z_t),), timestep, device=z_t.device, dtype=self._told_as(timestep))
        return Asked(told, alpha, sigma, sample_ids)

    def _told_as(self, timestep: float) -> torch.dtype:
        """Return the dtype of what the network is told: the schedule's, but for a fraction of an integer timestep."""
        own = self.schedule.model_time.dtype
        return own if own.is_floating_point or float(timestep).is_integer() else torch.float32

    def check_told(self, timesteps: Iterable[float]) -> None:
        """Try the network once where it is to be told fractions of its timesteps, before any sampling.

        Args:
            timesteps: all that it will be told.

        Raises:
            ConfigurationError: it takes whole timesteps only, since it looks them up in a table.
        """
        fraction = next((t for t in timesteps if self._told_as(t) != self.schedule.model_time.dtype), None)
        if fraction is None:
            return
        condition = self.conditioning.for_samples(torch.zeros(1, dtype=torch.long, device=self.device))
        try:
            z_t = torch.zeros(1, *self.latent_shape, device=self.device)
            self._answer(z_t, self._asked(z_t, fraction, 1.0, 1.0), condition)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"The grid or sampler asks {type(self.network).__name__} at timestep {fraction:.6g}, and it takes "
                f"whole timesteps only ({str(error).splitlines()[0]}); use the schedule's own (`ScheduleGrid`), and a "
                "sampler that asks at no others, such as `DDIM`."
            ) from error

    def _in_chunks(self, answer: Answer, z_t: Tensor, asked: Asked, condition: Condition, batch_size: int) -> Tensor:
        """Return ``answer`` for at most ``batch_size`` samples at once. A chunk for which memory runs out is halved,
        and so are those after it: samples do not depend on their neighbors, so that the result is the same to
        rounding.
        """
        predictions: list[Tensor] = []
        start, refused = 0, None
        while start < len(z_t):
            chunk = slice(start, start + min(batch_size, self.fitting_batch_size or batch_size))
            part = {name: value[chunk] for name, value in condition.items()}
            prediction = self._if_it_fits(answer, z_t[chunk], asked[chunk], part)
            size = len(z_t[chunk])
            if prediction is None:
                refused, self.fitting_batch_size = refused or size, size // 2
            else:
                predictions.append(prediction)
                start += size
        if refused is not None:
            warnings.warn(
                f"Memory ran out in a probe with {refused} samples at once; it went on with {self.fitting_batch_size}. "
                f"To spare it the attempt set its `batch_size: {self.fitting_batch_size}`.",
                stacklevel=2,
            )
        return torch.cat(predictions) if predictions else torch.empty_like(z_t)

    def _if_it_fits(self, answer: Answer, z_t: Tensor, asked: Asked, condition: Condition) -> Tensor | None:
        """Return None where memory ran out; a single sample cannot be halved, and its error is raised."""
        try:
            return answer(z_t, asked, condition)
        except (RuntimeError, MemoryError) as error:
            # Each pass through a sharded network is a collective: one rank that makes more of them would hang the
            # others.
            if len(z_t) == 1 or isinstance(self.network, FSDPModule) or not is_out_of_memory(error):
                raise
        # Only here have the traceback and the tensors it holds been let go. Without CUDA this does nothing.
        torch.cuda.empty_cache()
        return None


@runtime_checkable
class Probed(Protocol):
    """A LightningModule that says what of it is to be probed."""

    def diffusion_model(self) -> DiffusionModel: ...


def diffusion_model_of(module: object) -> DiffusionModel:
    """Return what a LightningModule's ``diffusion_model()`` returns.

    Raises:
        ConfigurationError: it has no such method.
    """
    if not isinstance(module, Probed):
        raise ConfigurationError(
            f"{type(module).__name__} cannot be probed: give it a method `diffusion_model(self) -> "
            "ldmprobe.DiffusionModel` that returns its network, noise schedule and latent shape."
        )
    return module.diffusion_model()


@runtime_checkable
class Trained(Protocol):
    """A LightningModule that says which network of it is trained, where it probes another, such as an average."""

    @property
    def trained_network(self) -> nn.Module: ...


def trained_network_of(module: object) -> nn.Module:
    """Return a LightningModule's ``trained_network``, or else the network of its ``diffusion_model()``.

    Raises:
        ConfigurationError: it has neither, or nothing in it is trained.
    """
    network = module.trained_network if isinstance(module, Trained) else diffusion_model_of(module).network
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigurationError(
            f"Nothing is trained in the network that {type(module).__name__} probes, such as an average of one; give "
            "it a property `trained_network` that returns the network in training."
        )
    return network
