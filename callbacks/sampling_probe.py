"""SamplingProbe: what sampling does to the latents, tracked over training, by any sampler."""

from __future__ import annotations

import lightning as L

from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.callbacks.probe_data import KeptLatents, has_held_out, prepared
from ldmprobe.diffusion.grids import Grid
from ldmprobe.diffusion.samplers import Sampler
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.record import PROBE_NAME, ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.guidance import Guidance
from ldmprobe.probing.analyses import Analysis
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling, record_name
from ldmprobe.tracking.scalars import Detail


class SamplingProbe(ProbeCallback[DiffusionModel]):
    """Sample latents from fixed noise, with the EMA weights if there are any, and analyze every step.

    A run may have several, with different samplers or grids. What each finds is declared by the analyses, each in its
    ``metrics`` (docs/METRICS.md).

    Args:
        every_n_steps: optimizer steps between probes.
        num_samples: N, at least 8.
        num_steps: S, sampling steps; the record says how many passes of the network they took.
        sampler: default: DDIM.
        grid: which noise levels are visited; default: the schedule's own.
        guidance: scale of classifier-free guidance, 1 for none; or another Guidance.
        batch_size: latents through the network at once.
        num_reference: real latents, of training images, that bases and ideal curves are fitted on; all probes of a run
            share them, as many as the one that wants most.
        seed: of the starting noise and of that of the steps, the same at every probe.
        analyses: default: all of them: StepKL, PCAScatter, X0Drift, SampleImages, MarginalGap, IdealTwins,
            OneStepError, Exposure.
        detail: what loggers are sent: "bands" of log-SNR, or also all "levels".
        name: of the records, and so of a section in the loggers; default: the sampler's. Two probes by one sampler, on
            different grids, need different ones.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        num_samples: int = 256,
        num_steps: int = 50,
        sampler: Sampler | None = None,
        grid: Grid | None = None,
        guidance: Guidance | float = 1.0,
        batch_size: int = 256,
        num_reference: int = 4096,
        seed: int = 0,
        analyses: list[Analysis] | None = None,
        detail: Detail = "bands",
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_steps, detail)
        check_numbers(type(self).__name__, 8, num_samples=num_samples)
        check_numbers(type(self).__name__, 1, num_steps=num_steps, num_reference=num_reference)
        self.sampling = Sampling.of(num_samples, num_steps, sampler, grid, guidance, batch_size, seed)
        self.num_reference, self.analyses = num_reference, analyses
        if name is not None and not PROBE_NAME.fullmatch(name):
            raise ConfigurationError(
                f"{type(self).__name__} got name {name!r}; expected up to 64 lower-case letters, digits and "
                "underscores."
            )
        self._name = name or record_name(self.sampling.sampler)
        self._latents = KeptLatents(num_images=128, num_reference=num_reference)

    @property
    def records(self) -> str:
        return self._name

    def check(self, model: DiffusionModel) -> None:
        self.sampling.levels(model, real=True)

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        model = self.subject(pl_module)
        reference = self._latents.reference(trainer, model)
        held_out = self._latents.held_out(trainer, model) if has_held_out(trainer) else None
        self.sampling = prepared(trainer, self.sampling)
        with self.running(trainer, ranks) as how:
            return probe_sampling(
                model, reference, self.sampling, analyses=self.analyses, held_out=held_out, name=self._name, **how
            )


class DDIMProbe(SamplingProbe):
    """SamplingProbe in the form of Roh et al., who look at every step of a deterministic DDIM."""
