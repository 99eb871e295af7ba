"""Sampling: one frozen value that says how samples are drawn, and the trajectory that follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ldmprobe.analysis.basis import LatentBasis
from ldmprobe.analysis.divergence import gaussian_kl
from ldmprobe.analysis.ideal import ideal_path_of
from ldmprobe.diffusion.grids import Grid, ScheduleGrid
from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.diffusion.samplers import DDIM, Sampler
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.diffusion.trajectory import SamplingStep, StepNoise, sampling_steps
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.digest import fingerprint
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.guidance import ClassifierFreeGuidance, Guidance, as_guidance
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.start import FromNoise, Start
from ldmprobe.types import PlainValues

_MOST_SAMPLES = 10_000_000  # more are a slip of the pen, and no memory holds them
_STEP_NOISE = 16  # streams of noise from here on belong to the draws of a sampler's steps


@dataclass(frozen=True)
class Sampling:
    """The whole choice of how samples are drawn, but for the model.

    Attributes:
        num_samples: N.
        num_steps: S, from 1 to T.
        sampler: the program of each step.
        grid: which noise levels the steps visit.
        guidance: of the network's answers.
        batch_size: how many latents go through the network at once; no sample depends on it.
        seed: of the starting noise and of that of the steps.
        start: where the trajectories begin: in noise, or at images that are noised to a level.

    Raises:
        ConfigurationError: ``num_samples`` or ``batch_size`` below 1.
    """

    num_samples: int = 256
    num_steps: int = 50
    sampler: Sampler = field(default_factory=DDIM)
    grid: Grid = field(default_factory=ScheduleGrid)
    guidance: Guidance = field(default_factory=ClassifierFreeGuidance)
    batch_size: int = 256
    seed: int = 0
    start: Start = field(default_factory=FromNoise)

    def __post_init__(self) -> None:
        check_numbers("Sampling", 1, _MOST_SAMPLES, num_samples=self.num_samples)
        check_numbers("Sampling", 1, batch_size=self.batch_size)
        check_numbers("Sampling", 0, seed=self.seed)

    @classmethod
    def of(
        cls,
        num_samples: int,
        num_steps: int,
        sampler: Sampler | None,
        grid: Grid | None,
        guidance: Guidance | float,
        batch_size: int,
        seed: int,
    ) -> Sampling:
        """Return what a configuration says: no sampler is DDIM, no grid the schedule's own, and a number the scale of a
        guidance.
        """
        return cls(
            num_samples, num_steps, sampler or DDIM(), grid or ScheduleGrid(), as_guidance(guidance), batch_size, seed
        )

    def levels(self, model: DiffusionModel, real: bool = False) -> SamplingGrid:
        """Return the noise levels of the steps, having checked that ``model`` can be sampled so.

        Args:
            real: whether there will be real latents, for a sampler with settings that are found from them.

        Raises:
            ConfigurationError: the schedule has no such levels, the network cannot be asked there, there is nothing
                to guide by, guidance is at none of the levels, or a setting is to be found of a sampler that clips.
        """
        grid = self.sampler.levels_on(self.start.cut(self.grid.levels(model.schedule, self.num_steps)))
        sampler = self.sampler.fitted(lambda sampler: 0.0) if real else self.sampler
        if sampler is not self.sampler and grid.clip_range is not None:
            raise ConfigurationError(
                f"The sampler is {self.sampler.in_words}, and what is 'auto' is found by its ideal, which a sampler "
                f"that clips x̂_0, here to ±{grid.clip_range:g}, does not have; give a number, or set `clip_sample: "
                "false`."
            )
        questions = [question for step in sampler.program(grid) for question in step.questions]
        with evaluating(model.modules):
            self.guidance.check(model)
            model.check_told([question.model_time for question in questions])
        levels = [question.log_snr for question in questions]
        if self.guidance.shifts and not any(self.guidance.at(level).shifts for level in levels):
            raise ConfigurationError(
                f"There is no guidance at any of the levels that are sampled ({self.guidance_in_words}), which are "
                f"of log-SNRs from {min(levels):.2g} to {max(levels):.2g}. Give a wider interval, or more steps."
            )
        return grid

    def fitted(self, grid: SamplingGrid, basis: LatentBasis) -> Sampling:
        """Return the same sampling with what the sampler leaves to be found: what brings its ideal on ``grid`` closest
        to real latents, by the mean KL of its end.
        """

        def loss(sampler: Sampler) -> float:
            path = ideal_path_of(basis, sampler.program(grid), grid)
            end = (path.mean_s[-1], path.var_s[-1], path.forward_mean_s[-1], path.forward_var_s[-1])
            return float(gaussian_kl(*end)[basis.varies].mean())

        return replace(self, sampler=self.sampler.fitted(loss))

    @property
    def guidance_in_words(self) -> str:
        """The guidance in words, such as "guidance scale 5.0"."""
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.guidance.provenance.items())

    @property
    def shifted_by(self) -> str:
        """What moves the samples' distribution away from the data's by design, in words; "" where nothing does."""
        moved = [self.guidance_in_words] if self.guidance.shifts else []
        moved += ["a start from images"] if self.start.shifts else []
        return " and ".join(moved)

    def provenance(self, model: DiffusionModel) -> PlainValues:
        """Return how the samples of a record were drawn, as plain values."""
        return {
            "num_samples": self.num_samples,
            "num_steps": self.num_steps,
            "sampler": self.sampler.in_words,
            **({"sampler_settings": self.sampler.settings} if self.sampler.settings else {}),
            **self.grid.provenance(model.schedule),
            **self.start.provenance,
            **self.guidance.provenance,
            "guidance": self.guidance_in_words,
            "seed": self.seed,
            "weights": model.weights,
            "latent_shape": list(model.latent_shape),
            "noise_schedule": model.schedule.name,
            "prediction_type": model.schedule.prediction.name,
            **prompts_of(model),
        }

    def fingerprints(self, model: DiffusionModel, grid: SamplingGrid) -> dict[str, str]:
        """Return what must be equal for two records' samples to be comparable, but for the weights: levels, codec,
        samples.
        """
        described = model.conditioning.description
        parts = [
            self.sampler.in_words,
            self.num_samples,
            *self.guidance.provenance.values(),
            *self.start.provenance.values(),
            self.seed,
            list(model.latent_shape),
        ]
        return {
            "grid": grid_fingerprint(grid),
            "codec": fingerprint(model.codec.description),
            "sampler": fingerprint(*parts, *([described] if described else [])),
        }


def sample_trajectory(
    model: DiffusionModel, sampling: Sampling, grid: SamplingGrid, sample_ids: Tensor
) -> Iterator[SamplingStep]:
    """Yield the sampling steps of the samples numbered ``sample_ids`` (n,), each from its own noise and with its own
    condition.
    """
    ids = sample_ids.tolist()
    condition = model.conditioning.for_samples(sample_ids.to(model.device))
    predict = model.predictor(condition, sampling.batch_size, sampling.guidance, sample_ids)
    own = sample_noise(ids, model.latent_shape, sampling.seed).to(model.device)
    z = sampling.start.latents(model, grid, ids, own)
    noise = step_noise(model, ids, sampling.seed)
    return sampling_steps(predict, z, sampling.sampler.program(grid), model.schedule.prediction, noise)


def step_noise(model: DiffusionModel, sample_ids: list[int], seed: int) -> StepNoise:
    """Return the noise of a sampler's draws for the samples numbered ``sample_ids``: each draw of each sample has its
    own.
    """

    def noise(draw: int) -> Tensor:
        return sample_noise(sample_ids, model.latent_shape, seed, stream=_STEP_NOISE + draw).to(model.device)

    return noise


def grid_fingerprint(grid: SamplingGrid) -> str:
    """Return what tells one path through the noise levels from another, clipping included."""
    clips = [] if grid.clip_range is None else [grid.clip_range]
    # Where α does not say what σ is, as it does of a variance-preserving process and of rectified flow:
    alpha, sigma = grid.schedule.alpha, grid.schedule.sigma
    told_by_alpha = any(torch.allclose(alpha**p + sigma**p, torch.ones_like(alpha)) for p in (1, 2))
    sigmas = [] if told_by_alpha else [grid.sigma_t.float(), grid.sigma_s.float()]
    return fingerprint(grid.timesteps, grid.alpha_t.float(), grid.alpha_s.float(), *sigmas, *clips)


def prompts_of(model: DiffusionModel) -> PlainValues:
    """Return ``{"prompts": […]}`` of a text-to-image model, for the provenance of a record; of another nothing."""
    return {name: value for name, value in model.conditioning.description.items() if name == "prompts"}
