"""How far guidance by a measurement is from the truth: inpainting and super-resolution of Gaussian images, whose
posterior is known.

    python scripts/measurement_table.py

An image x ~ N(0, Σ), `builtin:gaussian` at 8×8, of which y = A x + τ ξ is known, has mean K y with K = ΣAᵀ(AΣAᵀ + τ²)⁻¹
and covariance Σ − KAΣ. Two numbers of each method's samples, over the pixels that are not measured themselves: *bias* is the
squared error of the mean of the samples with one y, over the variance of the true mean; *spread* their variance, over
the true one. The model is perfect, so that all that is wrong is the method, and the sampler's few steps.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import torch
from scipy.fft import idctn
from torch import Tensor, nn

import ldmprobe
from ldmprobe import (
    DDPM,
    DPS,
    MMPS,
    BlockMeans,
    KnownPixels,
    LogSNRGrid,
    Replacement,
    Resampling,
    Sampling,
    ScheduleGrid,
)
from ldmprobe.data.builtin import gaussian_spectrum
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.sampling import sample_trajectory

SIZE, EXPONENT, FLOOR = 8, 2.0, 0.01
PIXELS = SIZE**2
EYE = torch.eye(PIXELS, dtype=torch.float64)


def covariance() -> Tensor:
    """Σ of the images' pixels, (D, D)."""
    waves = torch.from_numpy(idctn(EYE.view(-1, SIZE, SIZE).numpy(), axes=(1, 2), norm="ortho")).flatten(1)
    return waves.T @ (torch.from_numpy(gaussian_spectrum(SIZE, EXPONENT, FLOOR)).flatten()[:, None] * waves)


def schedule() -> ldmprobe.NoiseSchedule:
    """Stable Diffusion's noise levels; the network is told their log-SNR."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = (1 - betas).cumprod(0)
    return ldmprobe.NoiseSchedule.from_alpha_bar(alpha_bar, model_time=torch.logit(alpha_bar))


def epsilon(z: Tensor, mean: Tensor, cov: Tensor, alpha: float, sigma: float) -> Tensor:
    """The best estimate of ε for data N(mean, cov)."""
    gain = sigma * torch.linalg.inv(alpha**2 * cov + sigma**2 * EYE)
    return ((z.flatten(1).double() - alpha * mean) @ gain).to(z).view_as(z)


class Gaussian(nn.Module):
    """The exact denoiser of N(0, Σ)."""

    def __init__(self) -> None:
        super().__init__()
        self.covariance = nn.Parameter(covariance())

    def forward(self, z_t: Tensor, log_snr: Tensor) -> Tensor:
        alpha = float(log_snr[0].double().sigmoid()) ** 0.5
        return epsilon(z_t, torch.zeros(1, PIXELS), self.covariance.detach(), alpha, (1 - alpha**2) ** 0.5)


@dataclass
class Posterior(ldmprobe.Guidance):
    """The exact denoiser of what is left when y is known."""

    means: Tensor
    rest: Tensor
    provenance = {"guidance": "exact"}  # noqa: RUF012 (plain values)
    shifts = True

    def guide(self, answer, model):
        def guided(z_t, asked, condition):
            mean = self.means[asked.numbers % len(self.means)]
            return epsilon(z_t, mean, self.rest, asked.alpha, asked.sigma)

        return guided

    def check(self, model):
        """Nothing is needed."""


class Problem:
    """An operator, measurements of K images by it, and the truth about them.

    Args:
        number: K.
    """

    def __init__(self, operator: ldmprobe.Operator, noise: float, number: int) -> None:
        sigma, seed = covariance(), torch.Generator().manual_seed(0)
        self.operator, self.noise = operator, noise
        a = operator.apply(EYE.view(-1, 1, SIZE, SIZE), [0] * PIXELS).flatten(1).T
        measured = a @ sigma @ a.T + noise**2 * torch.eye(len(a), dtype=torch.float64)
        self.gain = sigma @ a.T @ torch.linalg.pinv(measured, hermitian=True)
        self.explained = self.gain @ a @ sigma
        self.rest = sigma - self.explained
        images = torch.randn(number, PIXELS, generator=seed, dtype=torch.float64) @ torch.linalg.cholesky(sigma).T
        self.images = images.view(number, 1, SIZE, SIZE).float()
        y = images @ a.T + noise * torch.randn(number, len(a), generator=seed, dtype=torch.float64)
        shape = operator.apply(torch.zeros(1, 1, SIZE, SIZE), [0]).shape[1:]
        self.y, self.means = y.view(number, *shape).float(), y @ self.gain.T
        diagonal = (a.T @ a).diagonal()
        self.asked = diagonal < 1  # the pixels that are not measured themselves

    @property
    def share(self) -> float:
        """The share of the variance that the measurement explains."""
        total = self.explained + self.rest
        return float(self.explained.diagonal()[self.asked].sum() / total.diagonal()[self.asked].sum())

    def judged(self, x: Tensor) -> tuple[float, float]:
        """Bias and spread of samples (N, D), of which number i has y number i mod K."""
        by_y = x.double().view(-1, len(self.y), PIXELS)[:, :, self.asked]
        off = (by_y.mean(0) - self.means[:, self.asked]) ** 2
        bias = off.sum(1).mean() / self.explained.diagonal()[self.asked].sum()
        spread = by_y.var(0).sum(1).mean() / self.rest.diagonal()[self.asked].sum()
        return float(bias), float(spread)

    def exact(self, number: int) -> tuple[float, float]:
        """Bias and spread of exact draws: the floor of the estimate."""
        noise = torch.randn(number, PIXELS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(self.rest)
        rest = (noise * values.clamp(min=0).sqrt()) @ vectors.T
        return self.judged(self.means.repeat(number // len(self.y), 1) + rest)

    def guided(self, method: ldmprobe.MeasurementMethod) -> ldmprobe.Guidance:
        return ldmprobe.MeasurementGuidance(self.operator, self.noise, method, self.y)


def sampled(problem: Problem, sampling: Sampling, model: ldmprobe.DiffusionModel | None = None) -> tuple[float, float]:
    """Bias and spread of samples by a model, or by a perfect network."""
    model = model or ldmprobe.DiffusionModel(Gaussian(), schedule(), (1, SIZE, SIZE))
    with evaluating(model.modules):
        for step in sample_trajectory(model, sampling, sampling.levels(model), torch.arange(sampling.num_samples)):
            last = step.z_s
    return problem.judged(last.flatten(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=6000)
    parser.add_argument("--num-measurements", type=int, default=25)
    parser.add_argument("--noise", type=float, default=0.01, help="τ")
    args = parser.parse_args()
    left = torch.zeros(1, 1, SIZE, SIZE)
    left[..., SIZE // 2 :] = 1
    operators = {"left half known": KnownPixels.outside(left), "2 × 2 block means": BlockMeans(2)}
    for name, operator in operators.items():
        problem = Problem(operator, args.noise, args.num_measurements)
        exact = Posterior(problem.means, problem.rest)
        uniform = Sampling(args.num_samples, 50, grid=LogSNRGrid(), batch_size=args.num_samples)
        ancestral = replace(uniform, sampler=DDPM())
        rows = {
            "exact denoiser, 50": replace(uniform, guidance=exact),
            "exact denoiser, 10 trailing": replace(uniform, num_steps=10, grid=ScheduleGrid(), guidance=exact),
            **{
                f"MMPS, 50, {m} solver steps": replace(uniform, guidance=problem.guided(MMPS(m))) for m in (1, 3, 5, 10)
            },
            **{
                f"DPS {step}, 50 ancestral": replace(ancestral, guidance=problem.guided(DPS(step)))
                for step in (2, 4, 8)
            },
            "replacement, 50, η 0": replace(uniform, guidance=problem.guided(Replacement())),
            "replacement, 50, η 1": replace(ancestral, guidance=problem.guided(Replacement())),
            "replacement, 250, η 1": replace(ancestral, num_steps=250, guidance=problem.guided(Replacement())),
            **{
                f"RePaint, 50, {u} times": replace(
                    uniform, sampler=Resampling(u), guidance=problem.guided(Replacement())
                )
                for u in (5, 10)
            },
        }
        print(f"\n| {name} (explains {problem.share:.0%}) | bias | spread |\n|---|---|---|")
        bias, spread = problem.exact(args.num_samples)
        print(f"| exact draws | {bias:.3f} | {spread:.2f} |")
        for label, sampling in rows.items():
            bias, spread = sampled(problem, sampling)
            print(f"| {label} | {bias:.3f} | {spread:.2f} |", flush=True)


if __name__ == "__main__":
    main()
