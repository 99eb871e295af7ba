"""An identity in the shape of a diffusers autoencoder: with it the latent pipelines of diffusers sample in pixel
space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldmprobe.types import Component

_SCALE = 1024.0  # latents are pixels over it: a power of two, so that nothing is rounded


@torch.no_grad()
def pixel_autoencoder(channels: int) -> Component:
    """The AutoencoderTiny (Bohan, 2023, github.com/madebyollin/taesd) that does nothing, times its ``scaling_factor``.

    Without blocks its encoder is two convolutions, here x ↦ x/1024. Its decoder clamps latents by 3·tanh(z/3), which is
    z to 1e-7 of it for values so small, and has one ReLU, past which it is x = relu(x) − relu(−x).
    """
    from diffusers import AutoencoderTiny

    width = 2 * channels  # x and −x
    model = AutoencoderTiny(
        in_channels=channels,
        out_channels=channels,
        latent_channels=channels,
        encoder_block_out_channels=(width,),
        decoder_block_out_channels=(width,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        scaling_factor=_SCALE,
    ).eval()
    both = torch.cat([torch.eye(channels), -torch.eye(channels)])
    into, out = model.encoder.layers  # of [0, 1], as the decoder's output, which both make of [−1, 1]
    _set_pointwise(into, both)
    _set_pointwise(out, both.T / _SCALE, bias=-1 / _SCALE)
    into, _, out = model.decoder.layers
    _set_pointwise(into, both)
    _set_pointwise(out, both.T * _SCALE / 2, bias=0.5)
    return model


def _set_pointwise(convolution: nn.Conv2d, matrix: Tensor, bias: float = 0.0) -> None:
    """Apply y = matrix · x + bias at every pixel, by the middle of a 3×3 kernel."""
    nn.init.zeros_(convolution.weight)
    convolution.weight[:, :, 1, 1] = matrix
    nn.init.constant_(convolution.bias, bias)  # type: ignore[arg-type]
