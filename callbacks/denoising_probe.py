"""DenoisingProbe: how well each noise level denoises held-out data, tracked over training."""

from __future__ import annotations

import lightning as L

from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.callbacks.probe_data import held_out_of, reference_of
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.diffusion_model import diffusion_model_of
from ldmprobe.probing.denoising import HeldOut, probe_denoising
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.record import ProbeRecord
from ldmprobe.probing.reference import Reference


class DenoisingProbe(ProbeCallback):
    """Denoises held-out latents, with noise fixed per image, on a fixed grid of log-SNR; no sampling.

    ================================  ==============================================================  ==========
    key                               what                                                            unit
    ================================  ==============================================================  ==========
    probe/denoising_mse/tNNNN         squared ε-error                                                 per dimension
    probe/denoising_mmse/tNNNN        that of the best linear denoiser, in closed form                per dimension
    probe/denoising_skill/tNNNN       1 − mse/mmse: below 0 is worse than a Wiener filter             1
    probe/denoising_nats/tNNNN        gain over the linear denoiser                                   nats
    probe/denoising_bound_nats        ½ D Σ MSE Δlog-SNR, lower is better                             nats
    ================================  ==============================================================  ==========

    Args:
        every_n_steps: optimiser steps between probes.
        num_samples: held-out images, as many as there are up to this.
        batch_size: latents through the network at once.
        num_reference: training images that the linear denoiser is fitted on.
        seed: of the noise.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        num_samples: int = 512,
        batch_size: int = 256,
        num_reference: int = 4096,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps)
        if min(num_samples, batch_size) < 1:
            raise ConfigurationError(
                f"DenoisingProbe got num_samples {num_samples}, batch_size {batch_size}; expected at least 1 of each."
            )
        self.num_samples, self.batch_size, self.num_reference, self.seed = num_samples, batch_size, num_reference, seed
        self._reference: Reference | None = None
        self._held_out: HeldOut | None = None

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        model = diffusion_model_of(pl_module)
        if self._reference is None:
            self._reference = reference_of(trainer, model, self.num_reference)
        if self._held_out is None:
            self._held_out = held_out_of(trainer, model, self.num_samples)
        with self.progress(trainer) as progress:
            return probe_denoising(
                model,
                self._held_out,
                self._reference,
                batch_size=self.batch_size,
                seed=self.seed,
                step=trainer.global_step,
                ranks=ranks,
                progress=progress,
            )
