r"""Power-function averages of weights, and averages of any length made of stored ones after training.

The average of length γ after t updates weighs the weights of update τ by τ^γ (Karras et al., 2024, arXiv:2312.02696,
section 3.1): scale-free, it forgets the start of training whenever it is looked at,

.. math:: \hat\theta_\gamma(t) = \frac{\gamma + 1}{t^{\gamma + 1}} \int_0^t \tau^\gamma \theta(\tau)\,d\tau, \qquad
    \hat\theta_\gamma(t) = \beta\,\hat\theta_\gamma(t - 1) + (1 - \beta)\,\theta(t), \quad
    \beta = (1 - 1/t)^{\gamma + 1}

Its length is told as σ_rel, the standard deviation of the profile's peak divided by t (eq. 5).

As a profile is a function, another one is close to a linear combination of stored profiles p_i, and the same
combination of the stored weights is close to its average (appendix C.2): least squares, A_ij = ⟨p_i, p_j⟩ in closed
form. Here its coefficients also sum to 1, so that what never changes is kept exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe.errors import ConfigurationError

LONGEST = 12**-0.5
"""σ_rel of γ = 0, where all updates weigh the same."""


def gamma_of(sigma_rel: float) -> float:
    """Return the γ ≥ 0 of a σ_rel: the largest root of (γ + 2)² (γ + 3) σ_rel² = γ + 1.

    Raises:
        ConfigurationError: σ_rel is not above 0 and at most 1/√12.
    """
    if not 0 < sigma_rel <= LONGEST:
        raise ConfigurationError(
            f"The length of an average, σ_rel, is {sigma_rel:g}; expected a number above 0 and at most {LONGEST:.4f}, "
            "where all steps weigh the same: such as 0.05 or 0.10."
        )
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def decay_at(update: int, gamma: float) -> float:
    """β of the ``update``-th update, counted from 1 (eq. 4); 0 at the first."""
    return float((1 - 1 / update) ** (gamma + 1))


@dataclass(frozen=True)
class Profile:
    """The average of length ``sigma_rel`` after ``updates`` updates, as a weighting of the weights at each."""

    updates: int
    sigma_rel: float

    @property
    def weights(self) -> np.ndarray:
        """The share of the weights of update 1, …, t, (t,): the integral of the profile over that update."""
        edges = (np.arange(self.updates + 1) / self.updates) ** (gamma_of(self.sigma_rel) + 1)
        return np.diff(edges)


@dataclass(frozen=True)
class Mixture:
    """A profile as a combination of others.

    Attributes:
        coefficients: of the others, summing to 1, (K,).
        error: ‖combination − profile‖ ÷ ‖profile‖ in L²: the share of the profile that the combination misses.
    """

    coefficients: np.ndarray
    error: float


def mixture(wanted: Profile, stored: list[Profile]) -> Mixture:
    """Return the least-squares combination of the ``stored`` profiles that comes nearest to the ``wanted`` one."""
    gram = _products(stored, stored)
    target = _products(stored, [wanted])[:, 0]
    own = float(_products([wanted], [wanted])[0, 0])
    scale = np.sqrt(np.diag(gram))  # of profiles, which are the taller the earlier: to unit length
    count = len(stored)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = gram / np.outer(scale, scale)
    system[:count, count] = system[count, :count] = 1 / scale * scale.min()
    right = np.append(target / scale, scale.min())
    coefficients = np.linalg.lstsq(system, right, rcond=1e-13)[0][:count] / scale
    missed = own - 2 * coefficients @ target + coefficients @ gram @ coefficients
    return Mixture(coefficients, float(np.sqrt(max(missed, 0) / own)))


def _products(first: list[Profile], second: list[Profile]) -> np.ndarray:
    """⟨p_a, p_b⟩ = (γ_a + 1)(γ_b + 1)/(γ_a + γ_b + 1) · r^γ/t, t the larger of t_a and t_b, γ its own, and r the
    smaller divided by it; (A, B) (appendix C.2).
    """
    t_a, t_b = (np.array([profile.updates for profile in each], float) for each in (first, second))
    g_a, g_b = (np.array([gamma_of(profile.sigma_rel) for profile in each]) for each in (first, second))
    a, b = np.meshgrid(t_a, t_b, indexing="ij")
    gamma_a, gamma_b = np.meshgrid(g_a, g_b, indexing="ij")
    longer = np.maximum(a, b)
    ratio, exponent = np.minimum(a, b) / longer, np.where(a < b, gamma_b, gamma_a)
    products: np.ndarray = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * ratio**exponent / longer
    return products
