"""MeasurementGuidance: samples of which a part, or a smaller image, is known, by a model not trained for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.digest import fingerprint
from ldmprobe.models.conditioning import Shown
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.guidance.base import Answer, Asked, Guidance, GuidanceAround, Guided
from ldmprobe.models.guidance.classifier_free import as_guidance
from ldmprobe.models.guidance.measurement_methods import MMPS, Expected, MeasurementMethod
from ldmprobe.models.guidance.operators import Operator
from ldmprobe.types import PlainValues

_NOISE = 5  # its stream of random numbers


class MeasurementGuidance(GuidanceAround):
    r"""Guidance by a linear measurement y = A x + τ ξ of the image, for any model, sampler and noise process: the score
    of z_t has :math:`\nabla_z \ln p(y \mid z_t)` added to it, as a method knows it.

    Where nothing of the data is left, α = 0, nothing can be known of it by a derivative, and there is no guidance.

    Args:
        operator: A, such as ``KnownPixels`` or ``BlockMeans``, of images in [−1, 1].
        noise: τ, the standard deviation of the measurement's noise. In latent space that of what the autoencoder cannot
            make should be in it.
        method: default: MMPS.
        y: (K, …), what is measured; sample i has number i mod K. Default: of held-out images, where there are any, each
            with noise of its own.
        guidance: by the model's own condition: another guidance, or the scale of a classifier-free one.
        num_rows: K, of held-out images.
        seed: of their noise.

    Raises:
        ConfigurationError: a number out of range; or, before sampling, operator, measurement, method and model do not
            go together.
    """

    def __init__(
        self,
        operator: Operator,
        noise: float = 0.05,
        method: MeasurementMethod | None = None,
        y: Tensor | None = None,
        guidance: Guidance | float = 1.0,
        num_rows: int = 64,
        seed: int = 0,
    ) -> None:
        check_numbers("MeasurementGuidance", 0, noise=noise, seed=seed)
        check_numbers("MeasurementGuidance", 1, num_rows=num_rows)
        self.operator, self.noise, self.y = operator, float(noise), y
        self.method, self.guidance = method or MMPS(), as_guidance(guidance)
        self.num_rows, self.seed = num_rows, seed
        self._images: Tensor | None = None

    def measuring(self, images: Tensor) -> Self:
        """Return the guidance by measurements of these images (K, C, H, W), in [−1, 1]."""
        rows = range(len(images))
        other, y = copy.copy(self), self.operator.apply(images, rows)
        noise = sample_noise(rows, tuple(y.shape[1:]), self.seed, stream=_NOISE)
        other.y, other._images = y + self.noise * noise.to(y), images
        return other

    def prepared(self, held_out: Callable[[int], Tensor]) -> Guidance:
        return self if self.y is not None else self.measuring(held_out(self.num_rows))

    def guide(self, answer: Answer, model: Guided) -> Answer:
        inner, prediction = self.guidance.guide(answer, model), model.schedule.prediction
        if self.y is None:
            raise ConfigurationError(
                "MeasurementGuidance has no measurement; give `y`, or images to `MeasurementGuidance.measuring`."
            )
        y = self.y.to(model.device)

        def guided(z_t: Tensor, asked: Asked, condition: Condition) -> Tensor:
            if asked.alpha == 0:
                return inner(z_t, asked, condition)
            rows = (asked.numbers % len(y)).tolist()

            def measure(x0: Tensor) -> Tensor:
                return self.operator.apply(model.codec.differentiable(x0), rows)

            with torch.set_grad_enabled(self.method.differentiates):
                z = z_t.detach().requires_grad_(self.method.differentiates)
                plain = inner(z, asked, condition)
                x0, _ = prediction.x0_and_epsilon(plain, z, asked.alpha, asked.sigma)
                measured = measure(x0)

            def pull(u: Tensor) -> Tensor:
                return torch.autograd.grad(measured, z, u, retain_graph=True)[0]

            def push(w: Tensor) -> Tensor:
                with sdpa_kernel(SDPBackend.MATH):  # of which alone there are derivatives in this direction
                    along: Tensor = torch.func.jvp(measure, (x0.detach(),), (w,))[1]
                return along

            def inverse(u: Tensor) -> Tensor:
                return model.codec.scale * self.operator.inverse(u, rows)

            residual = self.operator.restricted(y[rows].to(measured) - measured.detach(), rows)
            expected = Expected(residual, self.noise, asked.alpha, asked.sigma, pull, push, inverse)
            gradient = self.method.gradient(expected).to(z_t)
            return prediction.shifted(plain.detach(), gradient, asked.alpha, asked.sigma)

        return guided

    def check(self, model: Guided) -> None:
        super().check(model)
        name, image_shape = self.method.name, model.codec.image_shape(model.latent_shape)
        self.operator.check(image_shape)
        if self.method.inverts and model.codec.meta_module is not None:
            raise ConfigurationError(
                f"The method {name} puts pixels in the place of others, and the model has an autoencoder, through "
                "which there is no such way; use MMPS."
            )
        if self.method.inverts and self.operator.gram is None:
            raise ConfigurationError(
                f"The method {name} has to invert {type(self.operator).__name__}, which says no `gram`; use MMPS."
            )
        if self.method.differentiates and isinstance(model.network, FSDPModule):
            raise ConfigurationError(
                f"The method {name} differentiates the network while it samples, which is not done through a sharded "
                "one; sample from its checkpoint with `ldmprobe sample`."
            )
        if self.y is not None:
            expected = tuple(self.operator.apply(torch.zeros(1, *image_shape), [0]).shape[1:])
            if tuple(self.y.shape[1:]) != expected or len(self.y) == 0:
                raise ConfigurationError(
                    f"MeasurementGuidance got y of shape {tuple(self.y.shape)}; expected (K, "
                    f"{', '.join(map(str, expected))}), {self.operator.in_words} of the model's images."
                )

    def shown(self, sample_ids: Tensor) -> Shown | None:
        if self._images is None or self.y is None or self.operator.gram is None:
            return None
        rows = (sample_ids % len(self.y)).tolist()
        return Shown(self.operator.inverse(self.y[rows], rows), self._images[rows])

    @property
    def provenance(self) -> PlainValues:
        measured = {} if self.y is None else {"measured": fingerprint(self.y)[:8]}
        how = {"measurement": self.operator.in_words, "measurement_noise": self.noise, "method": self.method.in_words}
        return {**self.guidance.provenance, **how, **measured}

    @property
    def shifts(self) -> bool:
        return True
