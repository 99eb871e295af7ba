"""The quality probe: Fréchet and kernel distance of decoded samples from real images, in the features of a network, and
copies of training images among them (``probing/copies.py``).

FID = |μ_r − μ_g|² + tr(Σ_r + Σ_g − 2 (Σ_r Σ_g)^½) of features of real and generated images (Heusel et al., 2017,
arXiv:1706.08500, eq. 6). KID = MMD² with the kernel (x·y/F + 1)³ (Bińkowski et al., 2018, arXiv:1801.01401, eq. 2).
Both by torchmetrics, in float64.

FID falls with the number of samples, all else equal (about as 1/N): compare it at equal N only. KID is unbiased.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses.base import Findings
from ldmprobe.probing.copies import METRICS as COPIES
from ldmprobe.probing.copies import QUALITY, CopyFinder, CopySearch
from ldmprobe.probing.probe import Progress, Ranks, evaluating, no_progress
from ldmprobe.probing.real_features import IMAGES_AT_ONCE, RealFeatures, checked_fingerprint, describe_network
from ldmprobe.probing.sampling import Sampling, sample_trajectory

METRICS = (
    Metric(
        "fid", "FID over training",
        "Fréchet distance of decoded samples from real images, in the features of a network. It compares only with "
        "FIDs of the same network, images and number of samples.",
        "FID, lower is better", good="lower", shown="headline",
    ),
    Metric(
        "kid", "KID over training",
        "Kernel distance of the same features, which the number of samples does not bias: 0 is no difference. Bars "
        "are the standard deviation over its random subsets.",
        "KID, lower is better", good="lower", ideal=0.0, spread="kid_std", shown="headline",
    ),
    Metric("kid_std", "Standard deviation of KID over its subsets", "", "KID"),
    *COPIES,
)  # fmt: skip


def probe_quality(
    model: DiffusionModel,
    real: RealFeatures,
    feature_network: nn.Module,
    sampling: Sampling | None = None,
    kid_subset_size: int = 1000,
    step: int = 0,
    ranks: Ranks | None = None,
    progress: Progress = no_progress,
    copies: CopySearch | None = None,
) -> ProbeRecord:
    """Sample latents, by DDIM if no other sampler is named, decode them, and compare their features with those of real
    images.

    Sample i has the noise and condition of the DDIM probe's sample i, whatever the batch size or number of ranks. Of
    images a batch at a time is in memory; features of all of them are kept, 8 (N + M) F bytes, since KID is of subsets
    of them.

    Args:
        model: what to probe.
        real: features of real images, by the same network.
        feature_network: images (N, C, H, W) in [−1, 1] → features (N, F); moved to the model's device.
        sampling: how to sample; default: 2,048 samples in 50 steps. Its seed is that of KID's subsets, too.
        kid_subset_size: KID is the mean over 100 random subsets of so many features; at most N and M.
        step: optimizer steps taken so far.
        ranks: how the samples are shared out; default: one process.
        progress: called after each sampling step of each batch.
        copies: the search for copies of training images among the samples; default: none.

    Returns:
        A record called "quality", the same on every rank: scalars ``fid``, ``kid``, and ``kid_std``, the standard
        deviation over KID's subsets; NaN where samples are not finite.

    Raises:
        ConfigurationError: N, S, batch or subset size out of range, nothing to guide by, or features of another
            network; before anything is sampled.
    """
    sampling = sampling or Sampling(2048)
    refuse_too_few(sampling.num_samples, kid_subset_size)
    if kid_subset_size > len(real.features):
        raise ConfigurationError(
            f"kid_subset_size is {kid_subset_size}, but there are {len(real.features)} real images; expected at most "
            "as many."
        )
    searched = (None, None) if copies is None else (copies.known, copies.held_out)
    network = checked_fingerprint(feature_network, real, *filter(None, searched))
    grid = sampling.levels(model)
    ranks = ranks or Ranks()
    num_samples = sampling.num_samples
    sample_ids, even_ids = ranks.share(num_samples), ranks.even_share(num_samples)
    finder = None if copies is None else CopyFinder(copies, sample_ids)
    mine = []
    with evaluating([*model.modules, feature_network.to(model.device)]):
        for images, found_in in images_and_features(model, feature_network, even_ids, sampling, grid, progress):
            mine.append(found_in)
            if finder is not None:
                finder.update(images, found_in)
        features = ranks.gather_rows(torch.cat(mine), sample_ids, num_samples)
        found = (0.0,) * 3 if ranks.rank else fid_and_kid(real.features, features, kid_subset_size, sampling.seed)
        told = ranks.all_reduce_sum(torch.tensor(found, dtype=torch.float64, device=model.device))
        copied = Findings()
        if finder is not None:
            image_shape = model.codec.image_shape(model.latent_shape)
            copied = finder.finish(ranks, num_samples, image_shape, feature_network, model.device)
    fid, kid, kid_std = told.tolist()
    provenance = {
        **sampling.provenance(model),
        "num_real": len(real.features),
        "real": real.source,
        "feature_network": describe_network(feature_network),
        "num_features": real.features.shape[1],
        "kid_subset_size": kid_subset_size,
        **({} if grid.clip_range is None else {"clip_range": grid.clip_range}),
        "notes": {
            "fid": f"{num_samples:,} samples, {len(real.features):,} real images, features of "
            f"{describe_network(feature_network)}.",
            **copied.provenance.get("notes", {}),
        },
    }
    return ProbeRecord(
        QUALITY,
        step,
        scalars={"fid": fid, "kid": kid, "kid_std": kid_std, **copied.scalars},
        images=copied.images,
        metrics=METRICS,
        provenance=provenance,
        fingerprints={**sampling.fingerprints(model, grid), "features": network, "real_images": real.images},
    )


def refuse_too_few(num_samples: int, kid_subset_size: int) -> None:
    """Raise ConfigurationError for numbers of which no distance can be computed."""
    for name, value in (("num_samples", num_samples), ("kid_subset_size", kid_subset_size)):
        if value < 2:
            raise ConfigurationError(f"{name} is {value}; expected at least 2.")
    if kid_subset_size > num_samples:
        raise ConfigurationError(
            f"kid_subset_size is {kid_subset_size}, more than num_samples, {num_samples}; expected at most as many."
        )


def images_and_features(
    model: DiffusionModel,
    feature_network: nn.Module,
    sample_ids: Tensor,
    sampling: Sampling,
    grid: SamplingGrid,
    progress: Progress = no_progress,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the samples numbered ``sample_ids`` (n,) in turn, a few at once: images, decoded and clamped to [−1, 1],
    and their features.
    """
    batches = sample_ids.split(sampling.batch_size)
    for k, ids in enumerate(batches):
        for step in sample_trajectory(model, sampling, grid, ids):
            final = step.z_s
            progress(k * grid.num_steps + step.index + 1, len(batches) * grid.num_steps)
        for latents in final.split(IMAGES_AT_ONCE):
            images = model.codec.decode(latents).clamp(-1, 1)
            yield images, feature_network(images)


def sampled_features(
    model: DiffusionModel, feature_network: nn.Module, sampling: Sampling, grid: SamplingGrid
) -> Tensor:
    """Return the features of all samples, (N, F), on the CPU; the feature network is moved to the model's device."""
    with evaluating([*model.modules, feature_network.to(model.device)]):
        parts = images_and_features(model, feature_network, torch.arange(sampling.num_samples), sampling, grid)
        return torch.cat([features.cpu() for _, features in parts])


def fid_and_kid(real: Tensor, generated: Tensor, kid_subset_size: int, seed: int = 0) -> tuple[float, float, float]:
    """FID, KID and KID's standard deviation over 100 subsets, of features (M, F) and (N, F); NaN where these are not
    finite.

    Draws from torch's global generator, after seeding it: to be called within ``evaluating``.
    """
    if not bool(torch.isfinite(real).all() and torch.isfinite(generated).all()):
        return (math.nan,) * 3
    given = _GivenFeatures(real.shape[1])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all extracted features")
        kid = KernelInceptionDistance(given, subset_size=kid_subset_size, sync_on_compute=False)
    kid.update(real.double(), real=True)
    kid.update(generated.double(), real=False)
    torch.default_generator.manual_seed(seed)
    mean, deviation = kid.compute()
    return frechet_distance(real, generated), float(mean), float(deviation)


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """FID of features (M, F) and (N, F), without drawing anything."""
    # One rank computes, with the features of all.
    fid = FrechetInceptionDistance(_GivenFeatures(real.shape[1]), sync_on_compute=False)
    fid.update(real.double(), real=True)
    fid.update(generated.double(), real=False)
    return float(fid.compute())


class _GivenFeatures(nn.Identity):
    """A stand-in for torchmetrics' network, so that the features of both metrics are computed once."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
