"""DDIMProbe: what sampling does to the latents, tracked over training."""

from __future__ import annotations

import lightning as L

from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.callbacks.probe_data import has_held_out, held_out_of, reference_of
from ldmprobe.diffusion.grids import Grid, ScheduleGrid
from ldmprobe.diffusion.samplers import DDIM, Sampler
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel, diffusion_model_of
from ldmprobe.models.guidance import Guidance, as_guidance
from ldmprobe.probing.analyses import Analysis
from ldmprobe.probing.ddim import probe_ddim
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.reference import Reference
from ldmprobe.probing.sampling import Sampling


class DDIMProbe(ProbeCallback):
    """Sample latents from fixed noise, by DDIM if no other sampler is named, with the EMA weights if there are any, and analyze every step.

    Logged for each timestep t of the grid, over ``trainer/global_step``:

    =============================  ==================================================================  =============
    key                            what                                                                unit
    =============================  ==================================================================  =============
    probe/step_kl/tNNNN            KL(before ‖ after) of a denoiser pass, moment-matched Gaussians     nats/dimension
    probe/step_kl_reverse/tNNNN    KL(after ‖ before)                                                  nats/dimension
    probe/step_kl_js/tNNNN         Jensen-Shannon divergence of the same Gaussians                     nats/dimension
    probe/step_kl_softmax/tNNNN    paper-style softmax KL                                              nats
    probe/marginal_gap/tNNNN       KL(p_s ‖ q_s) of samples from real latents at the same level        nats/dimension
    probe/one_step_excess/tNNNN    error of one step from true latents, less the linear optimum's      1/dimension
    probe/x0_drift/tNNNN           mean squared change of x̂_0 since the step before                    1/dimension
    probe/pca_explained_{1,2}      share of real latents' variance along PC 1, PC 2                    1
    =============================  ==================================================================  =============

    and as W&B media ``probe/pca_scatter``, ``probe/pca_table``, ``probe/step_kl_curves``, ``probe/step_kl_heatmap``, ``probe/samples``. In the
    record only: closed forms (``step_kl_ideal``, ``step_kl_forward``, ``marginal_gap_ideal``), ``step_kl_floor``, and the eigen-bands'
    ``step_kl_ratio/bandK``, ``variance_ratio/bandK`` and ``variance_ratio_ideal/bandK``.

    Args:
        every_n_steps: optimiser steps between probes.
        num_samples: N, at least 8.
        num_steps: S, DDIM steps.
        sampler: default: DDIM.
        grid: which noise levels are visited; default: the schedule's own.
        guidance: scale of classifier-free guidance, 1 for none; or another Guidance.
        batch_size: latents through the network at once.
        num_reference: real latents, of training images, that bases and ideal curves are fitted on.
        seed: of the starting noise, the same at every probe.
        analyses: default: all of them: StepKL, PCAScatter, X0Drift, SampleImages, MarginalGap, OneStepError.
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
    ) -> None:
        super().__init__(every_n_steps)
        if num_samples < 8:
            raise ConfigurationError(f"DDIMProbe got num_samples {num_samples}; expected at least 8.")
        check_numbers("DDIMProbe", 1, num_steps=num_steps, num_reference=num_reference)
        self.sampling = Sampling(
            num_samples, num_steps, sampler or DDIM(), grid or ScheduleGrid(), as_guidance(guidance), batch_size, seed
        )
        self.num_reference, self.analyses = num_reference, analyses
        self._reference: Reference | None = None
        self._held_out: HeldOut | None = None

    def check(self, model: DiffusionModel) -> None:
        self.sampling.levels(model)

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        model = diffusion_model_of(pl_module)
        if self._reference is None:
            self._reference = reference_of(trainer, model, self.num_reference)
        if has_held_out(trainer) and (self._held_out is None or model.conditioning.trained):
            self._held_out = held_out_of(trainer, model, num_images=128)
        with self.progress(trainer) as progress:
            return probe_ddim(
                model,
                self._reference,
                self.sampling,
                analyses=self.analyses,
                held_out=self._held_out,
                step=trainer.global_step,
                ranks=ranks,
                progress=progress,
            )
