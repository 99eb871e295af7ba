"""A sampler's program run on a network, step by step, as a generator: a probe is a ``for`` loop over its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor

from ldmprobe.diffusion.prediction import Prediction
from ldmprobe.diffusion.samplers import Denoise, SamplerStep

Predict = Callable[[Tensor, Denoise], Tensor]
"""(z_t, the question, with its level and what the network is told of it) → the network's answer, of the shape of
z_t."""

StepNoise = Callable[[int], Tensor]
"""Number of a draw → standard normal noise of the latents' shape and device; sample i's is its own whatever the
batch."""


@dataclass(frozen=True)
class SamplingStep:
    """One step of a sampler: z_t goes in, z_s comes out.

    Attributes:
        index: k = 0 … S − 1, in sampling order (0 is the noisiest).
        timestep: what the network was told in the step's first pass.
        z_t, z_s: latents before and after, shape (N, C, H, W).
        x0, epsilon: the network's x̂_0 and ε̂ of the step's last pass, same shape.
    """

    index: int
    timestep: float
    z_t: Tensor
    z_s: Tensor
    x0: Tensor
    epsilon: Tensor


def sampling_steps(
    predict: Predict,
    z_T: Tensor,
    program: Sequence[SamplerStep],
    prediction: Prediction,
    noise: StepNoise | None = None,
) -> Iterator[SamplingStep]:
    """Sample from noise ``z_T`` (N, C, H, W), yielding each step. Memory does not grow with the number of steps.

    Args:
        predict: (z_t, question) → the network's answer.
        program: a ``Sampler``'s steps.
        prediction: the kind of the network's answer.
        noise: needed by programs with noise of their own.
    """
    registers, draws = {"z": z_T}, 0
    for k, step in enumerate(program):
        z_t, first, last = registers["z"], step.questions[0], step.questions[-1]
        for operation in step.operations:
            if isinstance(operation, Denoise):
                registers.update(_denoised(predict, registers[operation.source], operation, prediction))
                continue
            value = reduce(add, (c * registers[name] for name, c in operation.coefficients.items()))
            if operation.noise:
                assert noise is not None
                value = value + operation.noise * noise(draws)
                draws += 1
            registers[operation.target] = value
        yield SamplingStep(k, first.model_time, z_t, registers["z"], registers[last.x0], registers[last.epsilon])


def _denoised(predict: Predict, z: Tensor, operation: Denoise, prediction: Prediction) -> dict[str, Tensor]:
    answer = predict(z, operation)
    x0, epsilon = prediction.x0_and_epsilon(answer, z, operation.alpha, operation.sigma)
    if operation.clip_range is not None:
        x0 = x0.clamp(-operation.clip_range, operation.clip_range)
    return {operation.x0: x0, operation.epsilon: epsilon}
