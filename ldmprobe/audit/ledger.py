"""Ledger: the state of a training run as digests, item by item, so that two states can be compared and what differs be
named.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ldmprobe.io.digest import Digest, digest
from ldmprobe.lightning_private import loop_counters
from ldmprobe.models.lazy import LazyModule
from ldmprobe.training.ema import EMA

_WORTH_THREADS = 10_000_000  # bytes


Ledger = dict[str, dict[str, Digest]]
"""The digest of each item of a state, by its kind and name."""

# Kinds in the order in which they are compared, causes before effects; and how one item of each is called.
KINDS = {
    "data": "the batch of data",
    "random state": "the random state of {}",
    "training flags": "the training flag of {}",
    "trained or frozen": "requires_grad of {}",
    "parameters": "parameter {}",
    "moving average": "the moving average's {}",
    "buffers": "buffer {}",
    "extra state": "the state {}",
    "gradients": "the gradient of {}",
    "optimizer state": "the optimizer's {}",
    "learning-rate schedule": "the learning-rate schedule's {}",
    "gradient scaler": "the gradient scaler's {}",
    "loop counters": "the loop counter {}",
    "logged metrics": "the logged metric {}",
}


def take_ledger(
    trainer: L.Trainer, module: L.LightningModule, averages: Mapping[str, nn.Module] | None = None
) -> Ledger:
    """The state of training, as it is now: all kinds but data and logged metrics.

    Args:
        averages: moving averages that the module does not hold, by name.
    """
    entries = list(_entries(trainer, module, averages or {}))
    values = [value for _, _, value in entries]
    if sum(value.nbytes for value in values if isinstance(value, Tensor)) < _WORTH_THREADS:
        items = [digest(value) for value in values]
    else:  # hashlib lets go of the interpreter lock: a large model is hashed on all cores
        with ThreadPoolExecutor() as threads:
            items = list(threads.map(digest, values))
    ledger: Ledger = {}
    for (kind, name, _), item in zip(entries, items, strict=True):
        ledger.setdefault(kind, {})[name] = item
    return ledger


def differences(one: Ledger, other: Ledger) -> Iterator[tuple[str, str]]:
    """(kind, name) of each item that is not the same in both, in the order of ``KINDS``."""
    for kind in KINDS:
        mine, theirs = one.get(kind, {}), other.get(kind, {})
        for name in mine | theirs:
            if name not in mine or name not in theirs or mine[name].hex != theirs[name].hex:
                yield kind, name


def in_words(kind: str, name: str) -> str:
    """An item in plain words, such as "parameter network.conv_in.weight"."""
    return KINDS[kind].format(name)


def _entries(
    trainer: L.Trainer, module: L.LightningModule, averages: Mapping[str, nn.Module]
) -> Iterator[tuple[str, str, object]]:
    yield "random state", "Python", random.getstate()
    yield "random state", "NumPy", np.random.get_state()
    yield "random state", "torch", torch.get_rng_state()
    if torch.cuda.is_available():
        for device, cuda_state in enumerate(torch.cuda.get_rng_state_all()):
            yield "random state", f"CUDA device {device}", cuda_state
    for name, part in module.named_modules():
        yield "training flags", name or type(module).__name__, part.training
    averaged = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, (EMA, AveragedModel)))
    for name, parameter in module.named_parameters():
        kind = "moving average" if name.startswith(averaged) else "parameters"
        yield "trained or frozen", name, parameter.requires_grad
        yield kind, name, parameter
        yield "gradients", name, parameter.grad
    for name, part in module.named_modules():
        if isinstance(part, LazyModule):
            for key, value in part.network.state_dict().items():
                yield "parameters", f"{name}.{key}", value
    for name, average in averages.items():
        for key, value in average.state_dict().items():
            yield "moving average", f"{name}.{key}", value
    for name, buffer in module.named_buffers():
        yield "moving average" if name.startswith(averaged) else "buffers", name, buffer
    for name, part in module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            for key, value in _flat(part.get_extra_state()):
                yield "extra state", f"{name}.{key}", value
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for i, optimizer in enumerate(trainer.optimizers):
        which = f" of optimizer {i}" if len(trainer.optimizers) > 1 else ""
        for group, settings in enumerate(optimizer.param_groups):
            for key, value in settings.items():
                if key != "params":
                    yield "optimizer state", f"{key} of parameter group {group}{which}", value
        for k, (tensor, value) in enumerate(optimizer.state.items()):
            owner = names.get(id(tensor), f"parameter {k}, which the module does not name")
            for part_name, part_value in value.items() if isinstance(value, Mapping) else [("state", value)]:
                yield "optimizer state", f"{part_name} of {owner}{which}", part_value
    for i, config in enumerate(trainer.lr_scheduler_configs):
        which = f" of schedule {i}" if len(trainer.lr_scheduler_configs) > 1 else ""
        for key, value in config.scheduler.state_dict().items():
            yield "learning-rate schedule", f"{key}{which}", value
    for key, value in trainer.precision_plugin.state_dict().items():
        yield "gradient scaler", key, value
    for name, value in _flat(loop_counters(trainer)):
        yield "loop counters", name, value


def _flat(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
