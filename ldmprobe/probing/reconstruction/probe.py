"""probe_reconstruction: an autoencoder on held-out images, as one record."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ldmprobe.errors import check_numbers
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.autoencoder import has_posterior
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.models.pixels import checked_floats
from ldmprobe.probing.analyses import Findings
from ldmprobe.probing.probe import Progress, Ranks, evaluating, no_progress
from ldmprobe.probing.real_features import describe_network
from ldmprobe.probing.reconstruction.artifacts import GRID_ENERGY, ScaleEquivariance, grid_energy
from ldmprobe.probing.reconstruction.features import FeatureDistance
from ldmprobe.probing.reconstruction.latents import LatentMoments, LatentSpectrum
from ldmprobe.probing.reconstruction.measure import Measure, Reconstructed
from ldmprobe.probing.reconstruction.originals import Originals
from ldmprobe.probing.reconstruction.pictures import PRIOR, Pictures, prior_samples
from ldmprobe.probing.reconstruction.pixels import PerceptualError, PixelError, StructuralSimilarity
from ldmprobe.probing.reconstruction.rate import CodeUsage, PosteriorRate

PROBE = "reconstruction"
_ALWAYS = (PixelError, StructuralSimilarity, PosteriorRate, CodeUsage, LatentSpectrum, LatentMoments, ScaleEquivariance)
_SHOWN = (PixelError, StructuralSimilarity, PerceptualError, FeatureDistance, *_ALWAYS[2:])
_MEASURED = [metric for kind in _SHOWN for metric in kind.metrics]
METRICS = tuple(dict.fromkeys([*Pictures.metrics, PRIOR, *_MEASURED, GRID_ENERGY]))


def probe_reconstruction(
    model: AutoencoderModel,
    held_out: Iterable[Tensor],
    originals: Originals,
    feature_network: nn.Module | None = None,
    perceptual: nn.Module | None = None,
    num_pictures: int = 10,
    kid_subset_size: int = 500,
    batch_size: int = 64,
    seed: int = 0,
    step: int = 0,
    ranks: Ranks | None = None,
    progress: Progress = no_progress,
) -> ProbeRecord:
    """Encode held-out images, to the posterior's mode where there is one, decode them, and measure what is lost and
    what the latents are like.

    A batch of images is in memory at a time; of all of them some numbers, and their features. Every rank is given all
    images, and takes every W-th.

    Args:
        model: what to probe, such as ``AutoencoderModel(vae, image_shape=(3, 32, 32))``.
        held_out: batches of images (N, C, H, W) in [−1, 1]; those that ``originals`` is of, gone through once.
        originals: what is known of the images themselves, ``Originals.of(training, held_out, entries)``.
        feature_network: images (N, C, H, W) → features (N, F), for rFID and rKID: that of ``originals``, and another
            than the autoencoder was trained on. Default: neither.
        perceptual: images (N, C, H, W) twice → their mean distance, such as PerceptualLoss. Default: none.
        num_pictures: images that are shown, and samples of the prior.
        kid_subset_size: rKID is the mean over 100 random subsets of so many features, or of all, if there are fewer.
        batch_size: images through the autoencoder at once.
        seed: of the prior's samples and of rKID's subsets.
        step: optimizer steps taken so far.
        ranks: how the images are shared out; default: one process.
        progress: called after each batch.

    Returns:
        A record called "reconstruction", the same on every rank.

    Raises:
        ConfigurationError: a number out of range.
    """
    check_numbers("The reconstruction probe", 1, num_pictures=num_pictures, batch_size=batch_size)
    check_numbers("The reconstruction probe", 2, kid_subset_size=kid_subset_size)
    ranks = ranks or Ranks()
    networks = [network.to(model.device) for network in (feature_network, perceptual) if network is not None]
    with evaluating([*model.modules, *networks]):
        measures: list[Measure] = [kind(model, originals) for kind in _ALWAYS if kind.applies(model, originals)]
        if perceptual is not None:
            measures.append(PerceptualError(model, originals, perceptual))
        if feature_network is not None:
            subset = min(kid_subset_size, originals.num_images)
            measures.append(FeatureDistance(model, originals, feature_network, subset, seed))
        measures.append(Pictures(model, originals, num_pictures))
        done = 0
        for images in map(checked_floats, held_out):
            mine = torch.arange(len(images))[(done + torch.arange(len(images))) % ranks.world_size == ranks.rank]
            for places in mine.split(batch_size):
                batch = _reconstructed(model, images[places].to(model.device), done + places, originals)
                for measure in measures:
                    measure.update(batch)
            done += len(images)
            progress(done, originals.num_images)
        found = Findings(
            {"grid_energy": grid_energy(model, originals.shape)}, images=prior_samples(model, num_pictures, seed)
        )
        for measure in measures:
            found.update(measure.finish(ranks))
    return ProbeRecord(
        PROBE,
        step,
        {metric.name: found.scalars[metric.name] for metric in METRICS if metric.name in found.scalars},
        found.curves,
        images={name: found.images[name] for name in ("reconstructions", "prior_samples") if name in found.images},
        metrics=METRICS,
        provenance=_provenance(model, originals, found, perceptual),
        fingerprints=originals.fingerprints,
    )


def _reconstructed(model: AutoencoderModel, images: Tensor, image_ids: Tensor, originals: Originals) -> Reconstructed:
    posterior = model.posterior(images) if has_posterior(model.network) else None
    latents = model.encode(images) if posterior is None else posterior.mode().float()
    found = model.decode(latents).clamp(originals.low, originals.high)
    return Reconstructed(image_ids, images, latents, found, posterior)


def _provenance(
    model: AutoencoderModel, originals: Originals, found: Findings, perceptual: nn.Module | None
) -> dict[str, object]:
    factor = originals.shape[-1] // model.latent_shape[-1]
    facts: dict[str, object] = {
        "weights": model.weights,
        "autoencoder": type(model.network).__name__,
        "image_shape": list(originals.shape),
        "latent_shape": list(model.latent_shape),
        "factor": factor,
        "num_images": originals.num_images,
        "num_reference": originals.num_reference,
        "pca_entries": min(originals.entries, originals.num_reference - 1),
        "feature_network": originals.feature_network,
        "perceptual": "" if perceptual is None else describe_network(perceptual),
        "summary": _summary(model, originals, found.scalars, factor),
        **found.provenance,
    }
    if originals.entries > originals.num_reference - 1:
        facts["notes"] = {
            "skill_over_pca": f"PCA of {originals.num_reference:,} images has fewer components than the "
            f"{originals.entries:,} entries of a latent."
        }
    return {name: fact for name, fact in facts.items() if fact != ""}


def _summary(model: AutoencoderModel, originals: Originals, scalars: dict[str, float], factor: int) -> str:
    """Return what was found, in a sentence."""
    channels, height, width = model.latent_shape
    size = f"{originals.shape[1]}×{originals.shape[2]}"
    if math.isnan(scalars["psnr"]):
        return f"held-out images of {size} come back with values that are not finite: the autoencoder has diverged."
    words = f"held-out images of {size} come back from {channels}×{height}×{width} (f = {factor}) with "
    words += f"{scalars['psnr']:.1f} dB"
    if "pca_psnr" in scalars:
        gain = scalars["psnr"] - scalars["pca_psnr"]
        words += f", {abs(gain):.1f} dB {'above' if gain >= 0 else 'below'} PCA with as many numbers"
    if "codes_used" in scalars:
        words += f"; {scalars['codes_used']:.0%} of the codes are used, as evenly as {scalars['perplexity']:.0f} would"
    if "active_channels" in scalars:
        words += f"; {scalars['active_channels']:.0f} of {channels} channels are active"
    return f"{words}."
