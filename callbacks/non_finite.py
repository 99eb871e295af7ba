"""NonFinite: what to do about a NaN or Inf in training, and where it came from."""

from __future__ import annotations

import logging
from typing import Literal, get_args

import lightning as L
import torch
from lightning.pytorch.plugins.precision import FSDPPrecision, MixedPrecision
from torch import Tensor
from torch.optim import Optimizer

from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.lightning_private import logger_step
from ldmprobe.models.diffusion_model import Probed, diffusion_model_of
from ldmprobe.probing.non_finite import Fault, all_finite, find_fault, first_not_finite, loss_of, not_finite
from ldmprobe.tracking.loggers import log_scalars

_log = logging.getLogger(__name__)

Policy = Literal["stop", "skip", "warn"]
_STEPS = "Lower the learning rate, clip gradients (`trainer.gradient_clip_val: 1.0`), or train in float32 or bf16."
_CURES = {
    "images": "Repair these rows or remove them.",
    "latents": "The codec makes them of finite images: remove these rows, or give it an autoencoder with float32 "
    "weights.",
    "parameter": _STEPS,
    "loss": _STEPS,
    "gradient": _STEPS,
}


class NonFinite(L.Callback):
    """Looks for NaN and Inf in loss and gradients before each optimizer step, and names step, tensor, band of log-SNR
    and rows.

    Once something is found, images, latents, parameters, loss and gradients are searched in this order, and the first
    is named. Bands need a ``training_step`` that returns ``epsilon_mse`` and ``log_snr`` per sample, as
    LatentDiffusion's does; rows need ``index`` in the batch. With several processes all decide alike, and each names
    what it holds itself. Under fp16 a gradient that overflows is no fault: the loss scaler leaves that step out, and
    only the loss is looked at.

    Costs one reduction over the gradients a step, and one flag fetched from the device every ``every_n_steps``. Logs
    ``non_finite_steps``, their number so far.

    Args:
        policy: "stop" raises, with the weights as they were before the step; "skip" leaves the step out (weights and
            the optimizer's moments stay, while step count, learning-rate schedule and average go on) and stops only if
            the weights themselves are not finite; "warn" takes the step. What is gone on with is told once for each
            kind of tensor, and counted.
        every_n_steps: wait for the device only so often. Above 1 the faulty step has been taken when it is found, its
            number is still named, and its rows are not; "skip" needs 1.

    Raises:
        ConfigurationError: under policy "stop"; or for another policy than these, or "skip" with ``every_n_steps``
            above 1.
    """

    def __init__(self, policy: Policy = "stop", every_n_steps: int = 1) -> None:
        if policy not in get_args(Policy):
            raise ConfigurationError(f"NonFinite got policy {policy!r}; expected one of {', '.join(get_args(Policy))}.")
        check_numbers("NonFinite", 1, every_n_steps=every_n_steps)
        if policy == "skip" and every_n_steps > 1:
            raise ConfigurationError(
                f"NonFinite got policy skip with every_n_steps {every_n_steps}: a step can only be left out before it "
                "is taken; write `every_n_steps: 1`."
            )
        self.policy, self.every_n_steps = policy, every_n_steps
        self.steps = 0
        self._flags: list[tuple[int, Tensor]] = []  # of the steps since the device was last asked
        self._losses: list[Tensor] = []  # of the batches since the last optimizer step, as are faults
        self._faults: list[Fault] = []
        self._gradient: str | None = None
        self._step: int | None = None  # at which something was found, until the batch has ended
        self._told: set[str] = set()

    # --- seen ------------------------------------------------------------------------------------------------------

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        losses, self._losses = self._losses, []
        plugin = trainer.precision_plugin
        scaled = isinstance(plugin, (MixedPrecision, FSDPPrecision)) and plugin.scaler is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [] if scaled else [parameter.grad for parameter in parameters]
        self._flags.append((trainer.global_step, not_finite(losses + gradients)))
        if len(self._flags) < self.every_n_steps or (step := self._first_lost_step(trainer)) is None:
            return
        self._step = step
        self._gradient = first_not_finite((n, p.grad) for n, p in pl_module.named_parameters() if p.grad is not None)
        if self.policy != "warn" and not scaled:  # a loss scaler leaves the step out itself, and must see the gradients
            for parameter in parameters:
                parameter.grad = None

    def _first_lost_step(self, trainer: L.Trainer) -> int | None:
        """Return the first step since the last call with a NaN or Inf on any rank (the last step, where it is not this
        one).
        """
        flags, self._flags = self._flags, []
        lost = torch.stack([flag.to(flags[0][1].device) for _, flag in flags]).tolist()
        if trainer.strategy.reduce_boolean_decision(not any(lost)):
            return None
        return flags[lost.index(True) if any(lost) else -1][0]

    # --- named, once the batch has ended and its outputs are known ---------------------------------------------------

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step, self._step = self._step, None
        part = trainer.accumulate_grad_batches > 1 and self.every_n_steps == 1
        lost = part and not all_finite(loss_of(outputs))
        if step is not None or lost:
            model = diffusion_model_of(pl_module) if isinstance(pl_module, Probed) else None
            if fault := find_fault(model, pl_module, outputs, batch):
                self._faults.append(fault)
        if step is not None:
            self._act(trainer, step)

    def _act(self, trainer: L.Trainer, step: int) -> None:
        faults, self._faults = self._faults, []
        if not faults and self._gradient:
            faults = [Fault("gradient", f"the gradient of {self._gradient}")]
        fault = faults[0] if faults else Fault("loss", "what another process computed")
        told = f"There is NaN or Inf at optimizer step {step}, in {fault.place}. {_CURES[fault.kind]}"
        if self.policy == "stop":
            raise ConfigurationError(f"{told} NonFinite's `policy: skip` would leave such steps out.")
        if self.policy == "skip" and fault.kind == "parameter":
            raise ConfigurationError(
                f"{told} No step can be taken with such weights; resume from an earlier checkpoint."
            )
        self.steps += 1
        if fault.kind not in self._told:
            self._told.add(fault.kind)
            _log.warning("%s The step was %s; more of this kind are only counted.", told, self._done)
        log_scalars(trainer.loggers, {"non_finite_steps": float(self.steps)}, logger_step(trainer, step))

    @property
    def _done(self) -> str:
        return "left out" if self.policy == "skip" else "taken all the same"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._flags and (step := self._first_lost_step(trainer)) is not None:
            if fault := find_fault(None, pl_module, outputs=None, batch=None):
                self._faults.append(fault)
            self._act(trainer, step)
        if self.steps:
            _log.warning("%d optimizer steps of this run had NaN or Inf in them and were %s.", self.steps, self._done)
