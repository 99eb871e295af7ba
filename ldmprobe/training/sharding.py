"""FSDP2: a network's parameters spread over the ranks, each pass gathering them block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.wrapper import innermost

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def check_strategy(strategy: Strategy) -> None:
    """Return whether probes can look at a network under this strategy of Lightning's.

    Raises:
        ConfigurationError: FSDP of the first kind, or tensor parallelism; with what to write instead.
    """
    if isinstance(strategy, FSDPStrategy):
        raise ConfigurationError(
            "FSDPStrategy shards the module as a whole, so that the networks in it cannot be probed; use FSDP2: "
            "`strategy: {class_path: lightning.pytorch.strategies.ModelParallelStrategy, init_args: "
            "{data_parallel_size: N, tensor_parallel_size: 1}}`, N the number of processes."
        )
    if isinstance(strategy, ModelParallelStrategy) and (size := strategy.device_mesh["tensor_parallel"].size()) > 1:
        raise ConfigurationError(
            f"ModelParallelStrategy has tensor_parallel_size {size} (its default is the number of devices); "
            f"LatentDiffusion shards over data only: give it `data_parallel_size: {strategy.world_size}` and "
            "`tensor_parallel_size: 1`."
        )


def check_not_sharded(strategy: Strategy, name: str) -> None:
    """Check that a strategy leaves parameters whole, for what is called ``name``.

    Raises:
        ConfigurationError: it shards them.
    """
    if isinstance(strategy, (FSDPStrategy, ModelParallelStrategy)):
        raise ConfigurationError(
            f"{name} needs parameters that {type(strategy).__name__} does not shard; use `strategy: ddp`."
        )


def check_trained(module: nn.Module, network: nn.Module) -> None:
    """Return whether ``network``, which is sharded, is all that is trained in ``module``: gradients of the rest no one
    would average.

    Raises:
        ConfigurationError: it is not.
    """
    within = {id(parameter) for parameter in network.parameters()}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and id(parameter) not in within:
            raise ConfigurationError(
                f"Under ModelParallelStrategy only the network can be trained, and {name} is trained, too; leave that "
                "out (such as `train_text_encoder`), or use `strategy: ddp`."
            )


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard ``network`` in place over the data-parallel ranks: each block of its lists of blocks (a U-Net's levels, a
    transformer's layers) is gathered by itself, the rest together.
    """
    name = type(network).__name__
    blocks = [block for child in innermost(network).children() if isinstance(child, nn.ModuleList) for block in child]
    for module in (*blocks, network):
        # Resharded after each pass, the outermost too: probes make passes that no backward pass follows.
        fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=True)
    # Of the subclass that FSDP2 puts in its place: what checkpoints and adapters know it by.
    type(network).__name__ = name


def is_sharded(network: nn.Module) -> bool:
    """Return whether each pass through ``network`` is a collective."""
    return isinstance(network, FSDPModule)


@torch.no_grad()
def same_on_every_rank(module: nn.Module, strategy: Strategy) -> None:
    """Rank zero's parameters and buffers on all ranks, as DDP has it."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.copy_(strategy.broadcast(tensor))
