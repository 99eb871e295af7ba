r"""KL divergence between two sample sets, as the KL of moment-matched Gaussians in a fixed decorrelating basis.

Per direction, with variance ratio r = v_x/v_y and mean gap δ:

.. math:: KL(x \| y) = \tfrac12 \left[ r - 1 - \ln r + \delta^2 / v_y \right] \quad\text{nats}

It is the KL of Gaussians with the same means and variances, not of the distributions themselves (which is larger where
they are not Gaussian, and which no estimator reaches at these sample sizes and dimensions).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldmprobe.analysis.moments import PairedMoments


def gaussian_kl(mean_x: Tensor, var_x: Tensor, mean_y: Tensor, var_y: Tensor) -> Tensor:
    """KL(N(mean_x, var_x) ‖ N(mean_y, var_y)) per direction, in nats."""
    ratio = var_x / var_y
    return 0.5 * (ratio - 1 - ratio.log() + (mean_x - mean_y) ** 2 / var_y)


def paired_gaussian_kl(moments: PairedMoments, reverse: bool = False) -> Tensor:
    """KL(x ‖ y) per direction between *paired* samples, corrected for their finite number; shape (..., D), nats.

    The two sides of a sampling step share their trajectories. Given y, E[s_x²/s_y²] = (σ_x²/σ_y²) [ρ² +
    (1−ρ²)(N−1)/(N−3)], E[1/s_y²] = (N−1)/((N−3) σ_y²), and the squared gap of the means is too large by var(x−y)/N; the
    logarithm of the ratio is unbiased as it is, both variances having the same degrees of freedom.

    Args:
        moments: at least 4 samples.
        reverse: KL(y ‖ x) instead.

    Returns:
        nats per direction; NaN in a direction that does not vary on one of the sides.
    """
    n, mean_x, mean_y = moments.n, moments.mean_x, moments.mean_y
    var_x, var_y = (moments.var_y, moments.var_x) if reverse else (moments.var_x, moments.var_y)
    cov = moments.cov_xy
    rho2 = 1 - unbiased_unexplained(1 - cov**2 / (var_x * var_y), n).clamp(0, 1)
    inflation = (n - 1) / (n - 3)
    ratio = var_x / var_y
    var_difference = (var_x + var_y - 2 * cov).clamp(min=0)
    gap = ((mean_x - mean_y) ** 2 - var_difference / n) / inflation / var_y
    kl = 0.5 * (ratio / (rho2 + (1 - rho2) * inflation) - 1 - ratio.log() + gap)
    return torch.where(moments.varies, kl, torch.nan)


def unbiased_unexplained(unexplained: Tensor, n: Tensor) -> Tensor:
    """1 − ρ² from the sample's 1 − r²: (n−3)/(n−2) (1−r²) ₂F₁(1, 1; n/2; 1−r²), unbiased for normal pairs (Olkin &
    Pratt, 1958, eq. 2.7; four terms of the series).
    """
    u = unexplained
    series = 1 + 2 * u / n * (1 + 4 * u / (n + 2) * (1 + 6 * u / (n + 4)))
    return (n - 3) / (n - 2) * u * series


def gaussian_kl_to_known(n: Tensor | int, mean_x: Tensor, var_x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """KL(x ‖ N(mean, var)) per direction of ``n`` samples to a *known* Gaussian, corrected for their finite number, in
    nats.

    The variance and the squared gap are linear in unbiased estimates; E ln s_x² = ln σ_x² + ψ((n−1)/2) − ln((n−1)/2).
    NaN in a direction that does not vary.
    """
    half = torch.as_tensor((torch.as_tensor(n, dtype=torch.float64) - 1) / 2)
    log_bias = torch.special.digamma(half) - half.log()
    ratio = var_x / var
    kl = 0.5 * (ratio - 1 - (ratio.log() - log_bias) + ((mean_x - mean) ** 2 - var_x / n) / var)
    return torch.where((var_x > 0) & (var > 0), kl, torch.nan)


def gaussian_js(mean_x: Tensor, var_x: Tensor, mean_y: Tensor, var_y: Tensor, spacing: float = 0.09) -> Tensor:
    """Jensen-Shannon divergence of two Gaussians per direction, in nats, at most ln 2.

    Trapezoid rule in u, z = c + s sinh u about the narrower of the two, which converges exponentially for any ratio of
    variances; nodes ``spacing`` apart or closer leave about 1e-8. Twelve standard deviations of the wider apart, where
    nodes are too sparse for the other's peak, the two overlap by less than that.
    """
    sides = [(mean.double(), var.double()) for mean, var in ((mean_x, var_x), (mean_y, var_y))]
    (mean_x, var_x), (mean_y, var_y) = sides
    center = torch.where(var_x <= var_y, mean_x, mean_y)[..., None]
    scale = torch.minimum(var_x, var_y).sqrt()
    wider, gap = torch.maximum(var_x, var_y).sqrt(), (mean_x - mean_y).abs()
    reach = 8 * wider + gap
    top = torch.asinh(reach / scale)
    num_nodes = 2 + int(2 * float(top.nan_to_num(0, 0).amax()) / spacing)
    u = top[..., None] * torch.linspace(-1, 1, num_nodes, dtype=torch.float64, device=mean_x.device)
    z = center + scale[..., None] * u.sinh()
    log_p, log_q = (
        -0.5 * ((z - mean[..., None]) ** 2 / var[..., None] + (2 * torch.pi * var[..., None]).log())
        for mean, var in sides
    )
    mixture = torch.logaddexp(log_p, log_q) - math.log(2)
    integrand = 0.5 * (log_p.exp() * (log_p - mixture) + log_q.exp() * (log_q - mixture)) * u.cosh()
    divergence = (integrand.sum(-1) * 2 * top / (num_nodes - 1) * scale).clamp(max=math.log(2))
    return torch.where((gap > 12 * wider) & gap.isfinite() & (scale > 0), math.log(2), divergence)


def softmax_kl(x: Tensor, y: Tensor) -> Tensor:
    """Return the "paper-style" softmax KL: the mean over samples of KL(softmax(x_i) ‖ softmax(y_i)), in nats.

    Each latent is flattened and pushed through a softmax, which is how ``torch.nn.functional.kl_div`` is commonly used
    on feature maps and a likely reading of Roh et al., who do not say which KL they measured. It is a per-sample
    displacement, blind to a constant shift; it compares no distributions of latents.

    Args:
        x, y: shape (N, D).
    """
    log_p, log_q = x.double().log_softmax(1), y.double().log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()
