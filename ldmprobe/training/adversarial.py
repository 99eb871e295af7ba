"""Adversarial: the hinge loss of a discriminator and the term that it adds to the loss of an autoencoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmprobe.diffusion.full_precision import Move, in_float32, without_autocast
from ldmprobe.errors import ConfigurationError, check_numbers

_TINY = 1e-4  # added to the norm that λ is divided by
_LARGEST = 1e4  # λ


class AdversarialLoss(NamedTuple):
    """The two terms of one step, whose gradients do not mix, and what to log.

    Attributes:
        discriminator: ½ [mean relu(1 − D(x)) + mean relu(1 + D(x̂))]; its gradient reaches the discriminator alone.
        generator: −w λ mean D(x̂), 0 before ``start``; its gradient reaches the autoencoder alone.
        statistics: mean logits of real and of decoded patches, and λ once the generator's term counts.
    """

    discriminator: Tensor
    generator: Tensor
    statistics: dict[str, Tensor]


class Adversarial(nn.Module):
    r"""A discriminator that is trained from step 0, and counts for the autoencoder from step ``start`` on.

    Hinge loss (Lim & Ye, 2017, arXiv:1705.02894). With ``adaptive``, λ = ‖∇ L‖ / (‖∇ L_G‖ + 10⁻⁴), clamped to [0, 10⁴],
    with L the reconstruction loss, L_G = −mean D(x̂), and the gradients those of the decoder's last convolution (VQGAN:
    Esser et al., 2021, arXiv:2012.09841, eq. 7), of all ranks' samples; otherwise λ is 1. All in float32.

    Args:
        discriminator: such as PatchDiscriminator.
        weight: w.
        adaptive: whether λ is.
        start: the first optimizer step at which the autoencoder hears of the discriminator.
    """

    def __init__(self, discriminator: nn.Module, weight: float = 0.5, adaptive: bool = True, start: int = 0) -> None:
        super().__init__()
        check_numbers("Adversarial", 0, weight=weight, start=start)
        self.discriminator, self.weight, self.adaptive, self.start = discriminator, weight, adaptive, start

    def _apply(self, fn: Move, recurse: bool = True) -> Adversarial:
        """Move with the training module, in float32 at least."""
        super()._apply(in_float32(fn), recurse)
        return self

    def check(self, image_shape: tuple[int, ...], steps: float, precision: str) -> None:
        """Raise ConfigurationError if the discriminator does not take such images, never counts, or is weighted by
        gradients that fp16 cannot hold.

        Args:
            image_shape: (C, H, W); empty where it is not known.
            steps: those of the run; -1 or infinite where they are not known.
            precision: the Trainer's.
        """
        if self.adaptive and precision.startswith(("16", "transformer-engine-float16")):
            raise ConfigurationError(
                f"The adversarial weight is adaptive, and trainer.precision {precision}: its gradients underflow in "
                "float16, and the weight explodes. Write `precision: bf16-mixed` or 32-true, or `adaptive: false`."
            )
        if 0 <= steps <= self.start:
            raise ConfigurationError(
                f"The adversarial term is to count from step {self.start} on, and the run has {steps} steps: it never "
                "would. Lower its `start`, or leave `adversarial` out."
            )
        if image_shape:
            outline = copy.deepcopy(self.discriminator).to("meta")
            try:
                outline(torch.zeros(1, *image_shape, device="meta"))
            except RuntimeError as error:
                raise ConfigurationError(
                    f"{type(outline).__name__} does not take images of shape {tuple(image_shape)}: {error}. Set its "
                    f"`channels` to {image_shape[0]}, and its `image_size` to {image_shape[-1]}."
                ) from error

    def forward(
        self,
        images: Tensor,
        decoded: Tensor,
        loss: Tensor,
        last: nn.Parameter,
        step: int,
        mean_of_ranks: Callable[[Tensor], Tensor],
    ) -> AdversarialLoss:
        """Return the terms at an optimizer step.

        Args:
            images, decoded: (N, C, H, W), in float32.
            loss: the reconstruction loss of ``decoded``, which λ compares with.
            last: the weight of the decoder's last convolution.
            mean_of_ranks: the mean over all ranks of a tensor that is no part of a gradient.
        """
        with without_autocast(images.device):
            logits = self.discriminator(torch.cat([images, decoded.detach()]))
            real, fake = logits.chunk(2)
            discriminator = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
            statistics = {"logits_real": real.detach().mean(), "logits_decoded": fake.detach().mean()}
            if step < self.start or self.weight == 0:
                return AdversarialLoss(discriminator, torch.zeros_like(discriminator), statistics)
            # A discriminator whose parameters are constants: what flows back reaches the autoencoder alone.
            constants = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
            term = -torch.func.functional_call(self.discriminator, constants, (decoded,)).mean()
            if self.adaptive:
                norms = [
                    mean_of_ranks(torch.autograd.grad(part, last, retain_graph=True)[0].float()).norm()
                    for part in (loss, term)
                ]
                factor = (norms[0] / (norms[1] + _TINY)).clamp(0, _LARGEST)
                statistics["adaptive_weight"] = factor
                term = factor * term
            return AdversarialLoss(discriminator, self.weight * term, statistics)
