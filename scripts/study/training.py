"""What scripts train, and train with: the demo's network, and a trainer that does nothing but train."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn


def bare_trainer(steps: int, *callbacks: L.Callback, **more: Any) -> L.Trainer:
    """A trainer of so many steps on the CPU that validates, logs, shows and saves nothing, but for what ``more`` says."""
    bare = {
        "max_epochs": -1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
    }
    return L.Trainer(max_steps=steps, callbacks=list(callbacks), **{**bare, **more})


def families_unet() -> UNet2DModel:
    """The U-Net of configs/families, without classes."""
    return UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(48, 96),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=16,
    )


def small_unet(channels: int, width: int = 32, size: int = 8) -> UNet2DModel:
    """Return a U-Net of two resolutions.

    Args:
        channels: of the latents.
        width: channels at the higher resolution, a multiple of 16, of which there are twice as many at the lower.
        size: height and width of the latents.
    """
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
    )


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, network: nn.Module) -> None:
    """Take a step down a loss, with the gradient's norm clipped to 1."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
