"""The cascade probe: what an upsampler loses where small images are a base's samples and no real ones."""

from __future__ import annotations

from torch import nn

from ldmprobe.io.metric import Metric
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.quality import frechet_distance, sampled_features
from ldmprobe.probing.real_features import RealFeatures, checked_fingerprint, describe_network
from ldmprobe.probing.sampling import Sampling

METRICS = (
    Metric(
        "cascade_gap", "Gap of the cascade",
        "FID of samples made of the base's images less that of samples made of real small images: what the base's "
        "faults cost after upsampling. Near 0 the upsampler forgives them, as noise augmentation teaches it.",
        "FID, lower is better", good="lower", shown="headline",
    ),
    Metric(
        "fid_of_base_images", "FID of the cascade", "Of samples made of the base's images.",
        "FID, lower is better", good="lower",
    ),
    Metric(
        "fid_of_real_images", "FID of the upsampler alone", "Of samples made of real small images.",
        "FID, lower is better", good="lower",
    ),
)  # fmt: skip


def probe_cascade(
    of_base: DiffusionModel,
    of_real: DiffusionModel,
    real: RealFeatures,
    feature_network: nn.Module,
    sampling: Sampling,
    step: int = 0,
) -> ProbeRecord:
    """Sample an upsampler twice, from the same noise, and compare both with real images.

    Args:
        of_base: the upsampler that is told a base's images (``cascaded``).
        of_real: the upsampler that is told real small images.
        real: features of real images, by ``feature_network``.
        feature_network: images (N, C, H, W) in [−1, 1] → features (N, F).
        sampling: of both.
        step: optimizer steps of the upsampler.

    Returns:
        A record called "cascade".

    Raises:
        ConfigurationError: features of another network, or settings that the model does not take.
    """
    checked_fingerprint(feature_network, real)
    fids = []
    for model in (of_base, of_real):
        grid = sampling.levels(model)
        fids.append(frechet_distance(real.features, sampled_features(model, feature_network, sampling, grid)))
    scalars = {"cascade_gap": fids[0] - fids[1], "fid_of_base_images": fids[0], "fid_of_real_images": fids[1]}
    described = {"feature_network": describe_network(feature_network), "num_real": len(real.features)}
    provenance = {**sampling.provenance(of_base), **described}
    fingerprints = {**sampling.fingerprints(of_real, grid), "features": real.network, "real_images": real.images}
    return ProbeRecord("cascade", step, scalars, metrics=METRICS, provenance=provenance, fingerprints=fingerprints)
