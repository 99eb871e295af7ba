r"""The likelihood probe: how probable a model finds held-out latents, exactly, by its probability flow.

Three numbers of the same latents, in bits per dimension (lower is better; a density's bits may be negative):

- the model's own, by the change of density along its probability flow (``analysis/probability_flow.py``);
- the I-MMSE bound, from the squared errors ‖ε − ε̂‖² at the same levels (Kong et al., 2023, arXiv:2302.03792), which
  is one on the same network's reverse SDE, and equal to the flow's where the network is exact:

.. math:: -\log p(y) \le \mathbb E[-\log p_T(y_T)] - D\,(u_T - u_0) + \int \|\epsilon - \hat\epsilon\|^2\, du

- that of the Gaussian with real latents' mean and covariance, which a linear denoiser learns.

The latents carry the noise of the finest level the network knows: y = x_0 + s ε. Bits are of the latents as the network
sees them, and compare between models with the same codec.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.integrate import simpson
from torch import Tensor

from ldmprobe.analysis.basis import LatentBasis
from ldmprobe.analysis.intervals import student
from ldmprobe.analysis.probability_flow import Slope, flow_path, gaussian_nats, levels_of_path
from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.probe import Progress, Ranks, evaluating, no_progress

PROBE = "likelihood"
_bits = partial(Metric, unit="bits per dimension", good="lower")
METRICS = (
    _bits(
        "likelihood_bits", "Bits per dimension of held-out latents",
        "The model's own, by its probability flow; beside it the I-MMSE bound of its errors, that of the same network "
        "sampled stochastically, and the bits of the Gaussian with real latents' moments, which a linear denoiser "
        "learns. Lower is better; a density's may be negative. Bits far above the bound say that the flow leaves the "
        "data.",
        beside=("likelihood_bound_bits", "likelihood_gaussian_bits"), spread="likelihood_bits_spread", shown="headline",
    ),
    _bits("likelihood_bits_spread", "Half-width of the bits' 95 % interval, over latents", good="ideal"),
    _bits("likelihood_bound_bits", "I-MMSE bound", "From the errors of the same network at the same levels.",
          shown="headline"),
    _bits("likelihood_gaussian_bits", "Gaussian with real latents' moments", "What a linear denoiser learns.",
          good="ideal", shown="headline"),
    Metric(
        "likelihood_divergence", "Divergence of the flow",
        "σ tr ∂ε̂/∂z per dimension along the flow. For a perfect denoiser it is, on average, 1 − its squared error "
        "(dashed): a level where the two part is one whose answers are not the gradient of any density, or where the "
        "flow has left the data.",
        "", ideal="likelihood_divergence_ideal",
    ),
    Metric("likelihood_divergence_ideal", "1 − squared error of ε̂", shown="record"),
)  # fmt: skip
_FINEST, _SIGNS, _ERRORS = 8, 9, 1_000_000  # streams of noise


def probe_likelihood(
    model: DiffusionModel,
    held_out: HeldOut,
    reference: LatentStatistics,
    log_snr_step: float = 0.4,
    batch_size: int = 64,
    seed: int = 0,
    step: int = 0,
    ranks: Ranks | None = None,
    progress: Progress = no_progress,
) -> ProbeRecord:
    """Return the likelihood of held-out latents.

    S steps cost 4 S passes through the network, with gradients, and 2 S + 1 without.

    Args:
        held_out: the latents, at least 2.
        reference: of real latents.
        log_snr_step: how far a step of the flow goes in log-SNR, at most; at .4 the error in integrating is some .02 %.
        batch_size: latents through the network at once.
        seed: of the noise.

    Returns:
        A record called "likelihood", the same on every rank.

    Raises:
        ConfigurationError: too few latents, steps of no length, or a reference of other latents.
    """
    check_numbers("probe_likelihood", 1e-3, 2.0, log_snr_step=log_snr_step)
    num_images = len(held_out.latents)
    if num_images < 2:
        raise ConfigurationError(f"There is {num_images} held-out latent; expected at least 2, for an interval.")
    held_out.check_reference(reference)
    ranks = ranks or Ranks()
    mine, even = ranks.share(num_images), ranks.even_share(num_images)
    shape, dimension = tuple(held_out.latents.shape[1:]), held_out.latents[0].numel()
    nats, bound, divergence, errors = [], [], [], []
    batches = even.split(batch_size)
    with evaluating(model.modules):
        flow = Flow(model, log_snr_step)
        for number, ids in enumerate(batches):
            x0 = held_out.latents[ids].to(model.device).double()
            condition = {name: value[ids].to(model.device) for name, value in held_out.condition.items()}

            def noise(stream: int, ids: Tensor = ids, like: Tensor = x0) -> Tensor:
                return sample_noise(ids.tolist(), shape, seed, stream).to(like)

            path = flow_path(flow.slope(condition, noise(_SIGNS).sign()), x0 + flow.s[0] * noise(_FINEST), flow.log_snr)
            nats.append(flow.prior_nats(path.end) - path.lost)
            squared = flow.squared_errors(x0, noise, condition, reference.basis)
            bound.append(flow.prior_nats(x0, flow.s[-1]) + flow.integral(squared - dimension))
            divergence.append(path.divergence.T / dimension)
            errors.append(squared[:, :-1:2] / dimension)
            progress(number + 1, len(batches))
    every = {
        name: ranks.gather_rows(torch.cat(rows), mine, num_images)
        for name, rows in {"nats": nats, "bound": bound, "divergence": divergence, "errors": errors}.items()
    }
    bits = every["nats"] / dimension / np.log(2)
    in_errors = student(num_images) / num_images**0.5
    half_width = in_errors * float(bits.std())
    basis = reference.basis
    noisy = held_out.latents + flow.s[0] * sample_noise(range(num_images), shape, seed, _FINEST)
    gaussian = gaussian_nats(basis.rotate(noisy.float()).double(), basis.mean, basis.variance + flow.s[0] ** 2)
    log_snr = flow.log_snr[:-1:2].flip(0)
    timesteps = model.schedule.timesteps_at(log_snr).numpy()

    def curve(rows: Tensor) -> Curve:
        value, width = rows.mean(0).flip(0), in_errors * rows.std(0).flip(0)
        return Curve.around(timesteps, log_snr, value, width)

    return ProbeRecord(
        PROBE,
        step,
        scalars={
            "likelihood_bits": float(bits.mean()),
            "likelihood_bits_spread": half_width,
            "likelihood_bound_bits": float(every["bound"].mean() / dimension / np.log(2)),
            "likelihood_gaussian_bits": float(gaussian.mean() / dimension / np.log(2)),
        },
        curves={
            "likelihood_divergence": curve(every["divergence"]),
            "likelihood_divergence_ideal": curve(1 - every["errors"]),
        },
        metrics=METRICS,
        provenance={
            "num_images": num_images,
            "num_steps": flow.num_steps,
            "network_passes": 6 * flow.num_steps + 1,
            "noise_schedule": model.schedule.name,
            "seed": seed,
            "weights": model.weights,
            "dimension": dimension,
            "log_snr_range": [float(flow.log_snr[-1]), float(flow.log_snr[0])],
        },
        fingerprints={
            "grid": fingerprint(flow.log_snr.float()),
            "reference": reference.fingerprint,
            "codec": fingerprint(model.codec.description),
            "held_out": fingerprint(num_images, seed, held_out.outline),
        },
    )


class Flow:
    """The probability flow of a model from its cleanest level to its noisiest.

    Raises:
        ConfigurationError: the network looks its timesteps up in a table, which knows no levels in between.

    Attributes:
        num_steps: S.
        log_snr, s: of the levels that its steps ask about, (2 S + 1,).
    """

    def __init__(self, model: DiffusionModel, log_snr_step: float) -> None:
        self.model = model
        noisiest, cleanest = model.schedule.log_snr[model.schedule.rising[[0, -1]]].tolist()
        self.num_steps = math.ceil((cleanest - noisiest) / log_snr_step)
        self.log_snr = levels_of_path(cleanest, noisiest, self.num_steps)
        alpha, sigma, told = model.schedule.level_at(self.log_snr)
        model.check_told(told.tolist())
        self.alpha, self.sigma, self.told = alpha.tolist(), sigma.tolist(), told.tolist()
        self.s = (sigma / alpha).tolist()

    def _epsilon(self, z: Tensor, k: int, condition: Condition) -> Tensor:
        return self.model.x0_and_epsilon(z, self.told[k], self.alpha[k], self.sigma[k], condition)[1]

    def slope(self, condition: Condition, sign: Tensor) -> Slope:
        """Return the flow's slope, its divergence by Hutchinson's estimator with ``sign`` (N, C, H, W) of ±1."""

        def slope(y: Tensor, k: int) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                z = (self.alpha[k] * y).float().requires_grad_()
                epsilon = self._epsilon(z, k, condition)
                (along,) = torch.autograd.grad((epsilon * sign).sum(), z)
            divergence = self.sigma[k] * (along * sign).flatten(1).sum(1)
            return self.s[k] * epsilon.detach().double(), divergence.double()

        return slope

    def squared_errors(
        self, x0: Tensor, noise: Callable[[int], Tensor], condition: Condition, basis: LatentBasis
    ) -> Tensor:
        """Return ‖ε − ε̂‖² at each level, (N, 2 S + 1), each with noise of its own. A linear denoiser's error on the
        same noise, whose mean over the noise is known, is taken off but for that mean: much less is left to chance.
        """
        levels, centered = [], basis.rotate(x0) - basis.mean.to(x0)
        for k, s in enumerate(self.s):
            epsilon = noise(_ERRORS + k)
            z = (self.alpha[k] * x0 + self.sigma[k] * epsilon).float()
            error = (epsilon - self._epsilon(z, k, condition)).double().flatten(1).pow(2).sum(1)
            total = basis.variance.to(x0) + s**2
            of_noise, of_data = 1 - s**2 / total, s / total * centered
            linear = (of_noise * basis.rotate(epsilon) - of_data).pow(2).sum(1)
            levels.append(error - linear + (of_noise**2 + of_data**2).sum(1))
        return torch.stack(levels, dim=1)

    def integral(self, values: Tensor) -> Tensor:
        """Return ∫ du of values (N, 2 S + 1) by Simpson's rule, (N,)."""
        area: Tensor = torch.from_numpy(simpson(values.cpu().numpy(), x=(-self.log_snr / 2).numpy()))
        return area.to(values.device)

    def prior_nats(self, y: Tensor, noise: float = 0.0) -> Tensor:
        """Return −log p_T(y) of y = z/α at the noisiest level, by what sampling starts from, z_T ~ N(0, p); its mean
        where y has that much noise added, (N,).
        """
        alpha, prior, dimension = self.alpha[-1], self.model.schedule.prior_std**2, y[0].numel()
        squared = y.flatten(1).pow(2).sum(1) + dimension * noise**2
        nats: Tensor = 0.5 * (alpha**2 * squared / prior + dimension * math.log(2 * math.pi * prior / alpha**2))
        return nats
