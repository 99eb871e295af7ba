"""GradientProbe: what each noise level asks of the weights, tracked over training."""

from __future__ import annotations

from dataclasses import replace

import lightning as L

from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.callbacks.probe_data import KeptLatents
from ldmprobe.diffusion.objective import objective_of
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel, trained_network_of
from ldmprobe.probing.gradient import NUM_GROUPS, PROBE, probe_gradient
from ldmprobe.probing.probe import Ranks
from ldmprobe.training.sharding import is_sharded


class GradientProbe(ProbeCallback[DiffusionModel]):
    """Takes gradients of the network in training, not of its average, at each noise level: their norms and how much of
    them is noise, the cosines between bands, and the most that any sampler of timesteps could save. Forward and back
    for ``num_draws`` latents a level: with the defaults about 1.5 DenoisingProbes. Training goes on bit-identically.

    What it finds: ``probing.gradient.METRICS`` (docs/METRICS.md). Ceiling and noise scale are those of the module's
    ``objective``, if it has one.

    Args:
        every_n_steps: optimizer steps between probes.
        num_images: training images, as there are up to this, at least 16.
        num_draws: noised latents per level, at least 16.
        batch_size: latents through the network, and back, at once.
        seed: of the noise.

    Raises:
        ConfigurationError: before training: the network is sharded, or nothing in it is trained.
    """

    records = PROBE

    def __init__(
        self,
        every_n_steps: int = 1000,
        num_images: int = 256,
        num_draws: int = 256,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps)
        check_numbers("GradientProbe", 2 * NUM_GROUPS, num_images=num_images, num_draws=num_draws)
        check_numbers("GradientProbe", 1, batch_size=batch_size)
        self.num_images, self.num_draws, self.batch_size, self.seed = num_images, num_draws, batch_size, seed
        self._latents = KeptLatents(num_images)

    def subject(self, pl_module: L.LightningModule) -> DiffusionModel:
        return replace(super().subject(pl_module), network=trained_network_of(pl_module), weights="raw")

    def check(self, model: DiffusionModel) -> None:
        if is_sharded(model.network):
            raise ConfigurationError(
                "GradientProbe takes gradients of whole parameters, and ModelParallelStrategy has them in shards; use "
                "`strategy: ddp`, or leave GradientProbe out."
            )

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        model = self.subject(pl_module)
        training = self._latents.training(trainer, model)
        with self.running(trainer, ranks) as how:
            return probe_gradient(
                model, training, objective_of(pl_module), self.num_draws, self.batch_size, self.seed, **how
            )
