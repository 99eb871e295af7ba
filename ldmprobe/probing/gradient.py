"""The gradient probe: what each noise level asks of the weights: how loudly, how surely, and whether with the others.

At each level the gradient of the squared ε-error per dimension of training latents is taken for groups of draws that
have no image in common; everything else follows from inner products (``analysis/gradients.py``). Gradients of more than
2¹⁸ numbers are folded to that length, each number with a random sign, which leaves inner products without bias and adds
.3 % of the product of the norms to their noise (a tug-of-war sketch; Alon, Matias & Szegedy, 1999).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldmprobe.analysis.bands import bands_of
from ldmprobe.analysis.gradients import with_interval
from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.diffusion.objective import TimestepObjective
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import log_snr_grid
from ldmprobe.probing.draws import Level, answered
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.objective import LOG_SNR_LIMIT, epsilon_weights
from ldmprobe.probing.probe import Progress, Ranks, evaluating, no_progress

PROBE = "gradient"
NUM_GROUPS = 8
_KEPT = 2**18

METRICS = (
    Metric(
        "gradient_square/*", "Squared gradient by noise level",
        "Of one draw, E‖g‖², and of the mean over all draws, ‖ḡ‖²: what is between them is noise. A level whose ‖ḡ‖² "
        "has gone has nothing more to say to these weights.",
        "squared norm", log=True, shown="headline",
    ),
    Metric(
        "gradient_cosine/*", "Do the noise levels pull together?",
        "Cosine between the mean gradients of two bands: 1 (blue) where a step for the one is a step for the other, "
        "0 (white) where they have nothing to do with each other, below 0 (red) where they are in conflict.",
        "cosine", ideal=0.0, along="band of log-SNR that begins at", matrix=True,
    ),
    Metric(
        "gradient_ceiling", "Most that a sampler of timesteps can save",
        "E[w²‖g‖²] ÷ E[w‖g‖]², under this objective: by how much drawing ∝ w‖g‖ in place of its own density would "
        "lower the second moment of the gradient. No sampler that leaves the mean gradient as it is does better.",
        "factor", good="ideal", ideal=1.0, spread="gradient_ceiling_half_width", shown="headline",
    ),
    Metric("gradient_ceiling_half_width", "95 % half-width of that ceiling", "", "factor", shown="record"),
    Metric(
        "gradient_noise_scale", "Noise scale of the gradient",
        "tr Σ ÷ ‖ḡ‖²: the batch size at which noise and signal of a step are even. Far smaller batches waste little; "
        "far larger ones do.",
        "samples", spread="gradient_noise_scale_half_width", shown="headline",
    ),
    Metric("gradient_noise_scale_half_width", "95 % half-width of that scale", "", "samples", shown="record"),
)  # fmt: skip


def probe_gradient(
    model: DiffusionModel,
    training: HeldOut,
    objective: TimestepObjective | None = None,
    num_draws: int = 256,
    batch_size: int = 32,
    seed: int = 0,
    step: int = 0,
    ranks: Ranks | None = None,
    progress: Progress = no_progress,
) -> ProbeRecord:
    """Take the gradient of each level's squared ε-error with respect to what is trained of the network; in eval mode,
    without touching any ``.grad``, the optimizer or the random state.

    Args:
        model: of the network in training, not of an average of it.
        training: latents to take it on, with their conditions; at least 16.
        objective: weighs the levels, for ceiling and noise scale; default: all timesteps alike, on ε.
        num_draws: noised latents per level, at least 16; rounded down to a multiple of 8. The same draws at all levels.
        batch_size: latents through the network, and back, at once.

    Returns:
        A record called "gradient", the same on every rank.

    Raises:
        ConfigurationError: nothing in the network is trained; too few draws or latents.
    """
    parameters = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigurationError(
            f"Nothing in {type(model.network).__name__} is trained; give probe_gradient the network in training, whose "
            "parameters have `requires_grad`, not an average of it."
        )
    num_images = min(len(training.latents), num_draws) // NUM_GROUPS * NUM_GROUPS
    num_draws = num_draws // NUM_GROUPS * NUM_GROUPS
    if num_images < 2 * NUM_GROUPS:
        raise ConfigurationError(
            f"There are {len(training.latents)} training latents and num_draws is {num_draws}; expected at least "
            f"{2 * NUM_GROUPS} of each, for gradients of {NUM_GROUPS} groups that have no image in common."
        )
    ranks, schedule, device = ranks or Ranks(), model.schedule, model.device
    timesteps = log_snr_grid(model)
    size = sum(parameter.numel() for parameter in parameters)
    fold = _Folding(size, device)
    gradients = torch.zeros(len(timesteps), NUM_GROUPS, min(size, _KEPT), device=device)
    judged = [] if objective is None else [objective.sampler, objective.weighting]
    with evaluating([*model.modules, *judged]):
        mine = ranks.share(NUM_GROUPS).tolist()
        for done, group in enumerate(mine):
            draws = torch.arange(group, num_draws, NUM_GROUPS)
            image = draws % num_images
            z0 = training.latents[image].to(device)
            noise = sample_noise(draws.tolist(), tuple(z0.shape[1:]), seed, stream=5).to(device)
            condition = {name: value[image].to(device) for name, value in training.condition.items()}
            for k, timestep in enumerate(timesteps.tolist()):
                level = Level.of(schedule, timestep)
                for start in range(0, len(z0), batch_size):
                    chunk = slice(start, start + batch_size)
                    part = {name: value[chunk] for name, value in condition.items()}
                    with torch.enable_grad():
                        epsilon = answered(model, level, z0[chunk], noise[chunk], part).epsilon
                        loss = (epsilon - noise[chunk]).pow(2).flatten(1).mean(1).sum() / len(z0)
                        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
                    gradients[k, group] += fold(found)
                progress(done * len(timesteps) + k + 1, len(mine) * len(timesteps))
        weight, squared_weight = _level_weights(model, timesteps, objective)
    flat = ranks.all_reduce_sum(gradients).flatten(0, 1)
    gram = (flat @ flat.T).double().cpu().unflatten(0, (-1, NUM_GROUPS)).unflatten(2, (-1, NUM_GROUPS))
    log_snr = schedule.log_snr[timesteps]
    bands = bands_of(log_snr.numpy())
    shares = torch.stack([torch.from_numpy(band.share / band.share.sum()) for band in bands])
    group_size = num_draws // NUM_GROUPS
    square, mean_square, cosine, ceiling, scale = (
        with_interval(gram, group_size, statistic)
        for statistic in (
            lambda moments: moments.square,
            lambda moments: moments.inner.diagonal(),
            lambda moments: moments.cosines(shares),
            lambda moments: moments.ceiling(weight, squared_weight),
            lambda moments: moments.noise_scale(weight, squared_weight),
        )
    )
    rows = [Curve.along(*row) for row in zip(*cosine, strict=True)]
    return ProbeRecord(
        PROBE,
        step,
        scalars={
            "gradient_ceiling": float(ceiling[0]),
            "gradient_ceiling_half_width": float(ceiling[1]),
            "gradient_noise_scale": float(scale[0]),
            "gradient_noise_scale_half_width": float(scale[1]),
        },
        curves={
            "gradient_square/draw": Curve.around(timesteps, log_snr, *square),
            "gradient_square/mean": Curve.around(timesteps, log_snr, *mean_square),
            **{f"gradient_cosine/{band.low:+.0f}": row for band, row in zip(bands, rows, strict=True)},
        },
        metrics=METRICS,
        provenance={
            "num_draws": num_draws,
            "num_images": num_images,
            "num_parameters": size,
            "seed": seed,
            "weights": model.weights,
            "objective": "every timestep alike" if objective is None else "the module's",
        },
        fingerprints={
            "grid": fingerprint(timesteps, log_snr.float()),
            "codec": fingerprint(model.codec.description),
            "training": fingerprint(num_draws, num_images, seed, training.first(num_images).outline),
        },
    )


class _Folding:
    """Gradients as one vector of at most ``_KEPT`` numbers, whose inner products are those of the gradients but for
    noise.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.padding = -size % _KEPT
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (size + self.padding,), generator=generator, dtype=torch.int8)
        self.signs = None if size <= _KEPT else (2 * signs - 1).to(device)

    def __call__(self, gradients: tuple[Tensor, ...]) -> Tensor:
        flat = torch.cat([gradient.detach().flatten().float() for gradient in gradients])
        if self.signs is None:
            return flat
        return (self.signs * nn.functional.pad(flat, (0, self.padding))).view(-1, _KEPT).sum(0)


def _level_weights(
    model: DiffusionModel, timesteps: Tensor, objective: TimestepObjective | None
) -> tuple[Tensor, Tensor]:
    """Return Σ p w and Σ p w² over the timesteps that are nearest to each level, (L,): w is the weight on the squared
    ε-error, p the density of timesteps.
    """
    log_snr = model.schedule.log_snr
    if objective is None:
        p, w = torch.full_like(log_snr, 1 / len(log_snr)), torch.ones_like(log_snr)
    else:
        p, w = objective.probabilities(), epsilon_weights(objective)
    within = log_snr.abs() <= LOG_SNR_LIMIT
    nearest = (log_snr[within][:, None] - log_snr[timesteps]).abs().argmin(1)
    found = torch.zeros(2, len(timesteps), dtype=torch.float64)
    for row, power in zip(found, (1, 2), strict=True):
        row.index_add_(0, nearest, (p * w**power)[within])
    return found[0], found[1]
