"""TimestepBalancer: held-out progress decides which noise levels are trained more. The one callback here that changes
training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import numpy as np
import torch

from ldmprobe.analysis.balancing import Controller, HeldOutProgress, Measured, bounded, moved
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.callbacks.probe_data import KeptLatents
from ldmprobe.callbacks.training_clock import seconds_spent
from ldmprobe.diffusion.balanced_timesteps import BalancedTimesteps
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.probe import Ranks
from ldmprobe.types import PlainValues, StateDict

_DRY = "A dry run: nothing was changed, and the dotted line is what the controller wanted."
METRICS = (
    Metric(
        "balance_skill", "Median skill", "Nothing is steered before it has reached `begin_at_skill`.", "",
        good="higher", shown="headline",
    ),
    Metric(
        "balance_moved", "Draws to be moved", "The share of the draws that the target would move.", "",
        shown="headline",
    ),
    Metric(
        "balance_steered", "Decisions followed",
        "1 where the target was followed; the others would have moved too few of the draws.", "", shown="headline",
    ),
    Metric("balance_seconds", "Seconds spent on balancing", "CPU seconds in all.", "s", good="lower", shown="headline"),
    Metric(
        "balance_progress", "Where held-out error falls",
        "What the controller goes by: how much each level's held-out error fell since the decision before.",
        "nats per level and 1,000 steps", good="higher", log=True, shown="headline",
    ),
    Metric(
        "balance_density", "Where the balancer steered to",
        "Density of the draws per log-SNR, before the sampler's floor is added. Dotted: what the controller wanted "
        "last.",
        "density, 1 is the mean", ideal=1.0, beside=("balance_target",), shown="headline",
    ),
    Metric("balance_target", "what the controller wants", "", "density, 1 is the mean", ideal=1.0),
    Metric("balance_weight", "Weight of the loss by noise level", "", "weight", log=True),
)  # fmt: skip


class TimestepBalancer(ProbeCallback[DiffusionModel]):
    """Probes held-out data a little and often, and steers a ``BalancedTimesteps``,
    which must be the model's ``timesteps``, towards the noise levels where more training pays
    (``analysis/balancing.py``).

    Two things are set. The *density* of the draws follows the controller. The *weight* of a level's loss is its
    held-out error to the power of −``equalize``: the gradient of a squared error is as large as its root, most of
    which, at low noise, no training can remove; weighted by 1/√MSE all levels pull alike, and those with large errors
    do not drown the others (at 1, the weight of a regression with known variances, as in EDM2's learned uncertainty;
    Karras et al., 2024, arXiv:2312.02696, eq. 14).

    Nothing is steered before the median over levels of the skill, 1 − MSE/MMSE of the best linear denoiser, has reached
    ``begin_at_skill``. Until then the error falls fastest where there is least to learn (at high noise ε ≈ z_t), draws
    or none, and a controller would send nearly all draws there.

    From then on the controller's wish is kept within bounds: no level's density is more than ``max_ratio`` times or
    less than 1/``max_ratio`` of the mean; the sampler's ``floor`` of all draws stays as it was; it is a moving average;
    and nothing changes unless at least ``hysteresis`` of the draws would move. The sampler's probabilities sum to 1 and
    the loss keeps its mean weight of 1, so that the learning rate is what it was.

    Each decision is a record "balance" (``METRICS``).

    Unlike every other probe, this one changes training; it costs ``num_draws`` passes at some 17 levels each time. What
    it looks at is held-out data, which in a strict sense is then no longer held out; the leak is one density over 17
    levels.

    Args:
        every_n_steps: optimizer steps between decisions.
        controller: default: ``HeldOutProgress``.
        num_images, num_draws: held-out images, and noised latents per level.
        begin_at_skill: as above; −inf steers from the first progress on.
        smoothing: share of the old in the moving average of the controller's wish.
        max_ratio, hysteresis, equalize: as above; with ``equalize`` 0 all weights are 1.
        dry_run: only record what it would do.
        batch_size, num_reference, seed, held_out: as DenoisingProbe's.

    Raises:
        ConfigurationError: before training: the model has no BalancedTimesteps, or numbers out of range.
    """

    part_of_training = True
    records = "balance"

    def __init__(
        self,
        every_n_steps: int = 100,
        controller: Controller | None = None,
        num_images: int = 128,
        num_draws: int = 64,
        begin_at_skill: float = -0.1,
        smoothing: float = 0.5,
        max_ratio: float = 8.0,
        hysteresis: float = 0.02,
        equalize: float = 0.5,
        dry_run: bool = False,
        batch_size: int = 256,
        num_reference: int = 4096,
        seed: int = 1,
        held_out: Iterable[Any] | None = None,
    ) -> None:
        super().__init__(every_n_steps)
        if not (0 <= smoothing < 1 and max_ratio > 1 and 0 <= hysteresis < 1):
            raise ConfigurationError(
                f"TimestepBalancer got smoothing {smoothing}, max_ratio {max_ratio}, hysteresis {hysteresis}; expected "
                "0 <= smoothing < 1, max_ratio > 1, 0 <= hysteresis < 1."
            )
        check_numbers("TimestepBalancer", 0, 1, equalize=equalize)
        if not begin_at_skill < 1:
            raise ConfigurationError(
                f"TimestepBalancer got begin_at_skill {begin_at_skill}; expected a number below 1."
            )
        check_numbers("TimestepBalancer", 8, num_images=num_images)
        check_numbers("TimestepBalancer", 32, num_draws=num_draws)
        check_numbers("TimestepBalancer", 1, batch_size=batch_size)
        self.controller = controller or HeldOutProgress()
        self.num_images, self.num_draws, self.batch_size = num_images, num_draws, batch_size
        self.smoothing, self.max_ratio, self.hysteresis, self.dry_run = smoothing, max_ratio, hysteresis, dry_run
        self.equalize, self.begin_at_skill = equalize, begin_at_skill
        self.num_reference, self.seed = num_reference, seed
        self.cost_seconds = 0.0
        self._latents = KeptLatents(num_images, num_reference, held_out)
        self._state: PlainValues = {}  # begun; step, mse, target, density and weight of the last decision

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._sampler_of(pl_module)

    def _sampler_of(self, pl_module: L.LightningModule) -> BalancedTimesteps | None:
        found = [module for module in pl_module.modules() if isinstance(module, BalancedTimesteps)]
        if len(found) != 1 and not self.dry_run:
            raise ConfigurationError(
                f"TimestepBalancer steers one BalancedTimesteps, and {type(pl_module).__name__} has {len(found)}; set "
                "the model's `timesteps: {class_path: ldmprobe.BalancedTimesteps}`, or `dry_run: true`."
            )
        return found[0] if found else None

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        began = seconds_spent(pl_module.device)
        model = self.subject(pl_module)
        reference = self._latents.reference(trainer, model)
        held_out = self._latents.held_out(trainer, model)
        found = probe_denoising(
            model,
            held_out,
            reference,
            num_draws=self.num_draws,
            batch_size=self.batch_size,
            seed=self.seed,
            step=trainer.global_step,
            ranks=ranks,
        )
        record = self._decide(found, self._measured(found), self._sampler_of(pl_module))
        self.cost_seconds += seconds_spent(pl_module.device) - began
        record.scalars["balance_seconds"] = self.cost_seconds
        return record

    def _measured(self, found: ProbeRecord) -> Measured:
        mse = found.curves["denoising_mse"]
        progress = np.zeros_like(mse.value)
        if self._state and found.step > self._state["step"]:
            progress = np.maximum(self._state["mse"] - mse.value, 0) / (found.step - self._state["step"])
        return Measured(mse.log_snr, mse.value, progress, found.curves["denoising_mmse"].value)

    def _decide(self, found: ProbeRecord, measured: Measured, sampler: BalancedTimesteps | None) -> ProbeRecord:
        density, target, weight = (
            self._state.get(name, np.ones_like(measured.mse)) for name in ("density", "target", "weight")
        )
        skill = float(np.median(1 - measured.mse / measured.linear_mmse))
        begun = self._state["begun"] = self._state.get("begun", False) or skill >= self.begin_at_skill
        wanted = self.controller.density(measured)
        if begun and wanted.any():
            # Of what is wanted, not of progress: that is a hundred times as fast at the start, and would be remembered.
            keep = self.smoothing if "target" in self._state else 0.0
            target = keep * target + (1 - keep) * bounded(wanted, self.max_ratio)
            self._state["target"] = target
        share = moved(density, target)
        steered = share > self.hysteresis and not self.dry_run
        if steered:
            density = self._state["density"] = target
            weight = self._state["weight"] = measured.mse**-self.equalize
            if sampler is not None:
                sampler.steer(*(torch.from_numpy(values.copy()) for values in (measured.log_snr, density, weight)))
        self._state |= {"step": found.step, "mse": measured.mse}
        where = found.curves["denoising_mse"]
        nats = nats_per_error(where.log_snr, found.provenance["dimension"])
        curves = {
            "balance_progress": 1000 * nats * measured.progress,
            "balance_target": target,
            "balance_density": density,
            "balance_weight": weight,
        }
        return ProbeRecord(
            self.records,
            found.step,
            scalars={"balance_skill": skill, "balance_moved": share, "balance_steered": float(steered)},
            curves={name: Curve(where.timestep, where.log_snr, value) for name, value in curves.items()},
            metrics=METRICS,
            provenance={
                **{name: value for name, value in found.provenance.items() if name not in ("summary", "remarks")},
                "controller": type(self.controller).__name__,
                "dry_run": self.dry_run,
                "notes": {"balance_density": _DRY} if self.dry_run else {},
            },
        )

    def state_dict(self) -> StateDict:
        state = {
            name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
            for name, value in self._state.items()
        }
        return {"decided": state, "cost_seconds": self.cost_seconds}

    def load_state_dict(self, state_dict: StateDict) -> None:
        self._state = {
            name: value.numpy().copy() if isinstance(value, torch.Tensor) else value
            for name, value in state_dict["decided"].items()
        }
        self.cost_seconds = state_dict["cost_seconds"]
