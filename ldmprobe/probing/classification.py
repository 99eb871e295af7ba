r"""The classifier probe: at which noise levels a classifier of noisy latents is right, and whether it knows when.

Guidance goes by the gradient of ln p(y | z_t). Where noise hides the class no classifier can be right, and an honest
one says p = 1/K; one that is surer than it is right pulls samples of those levels somewhere, whatever the class.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from ldmprobe.analysis.intervals import student
from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.models.noisy_classifier import ClassifierModel
from ldmprobe.probing.probe import Progress, Ranks, evaluating, no_progress

PROBE = "classifier"
METRICS = (
    Metric(
        "classifier_accuracy", "How often the classifier is right",
        "Share of held-out latents, noised to each level, whose class is the likeliest. It falls to chance (dashed) "
        "where noise hides the class: guidance there has nothing to go by.",
        "share right", good="higher", ideal="classifier_chance", pool="mean", shown="headline",
    ),
    Metric("classifier_chance", "Share of the most frequent class", shown="record"),
    Metric(
        "classifier_nats", "Cross-entropy of the class",
        "−ln p(y) of held-out latents; ln K is what a classifier loses that says 1/K of each class. Above it the "
        "classifier is sure and wrong.",
        "nats", good="lower", pool="mean",
    ),
    Metric(
        "classifier_calibration", "Expected calibration error",
        "Mean distance of what the classifier says its chance is from how often it is right, in 15 bins "
        "(Naeini et al., 2015). A classifier that is surer than it is right guides too hard.",
        "share", good="lower", ideal=0.0, pool="mean", shown="headline",
    ),
)  # fmt: skip
_LEVEL = 0.75  # of log-SNR, from one to the next, as the denoising probe's
_BINS, _NOISE = 15, 11


def probe_classifier(
    model: ClassifierModel,
    latents: Tensor,
    labels: Tensor,
    min_log_snr: float = -8.0,
    max_log_snr: float = 10.0,
    batch_size: int = 256,
    seed: int = 0,
    step: int = 0,
    ranks: Ranks | None = None,
    progress: Progress = no_progress,
) -> ProbeRecord:
    """Return how right a classifier is at each noise level, α² + σ² = 1, with noise fixed per latent.

    Args:
        latents: held-out ones (N, C, h, w), at least 2, on the CPU; the same on every rank.
        labels: their classes (N,).
        min_log_snr, max_log_snr: the levels, .75 apart.
        batch_size: latents through the network at once.
        seed: of the noise.

    Returns:
        A record called "classifier", the same on every rank.

    Raises:
        ConfigurationError: too few latents, or a class that the classifier does not know.
    """
    check_numbers("probe_classifier", 1, batch_size=batch_size)
    number, num_classes, ranks = len(latents), model.num_classes, ranks or Ranks()
    if number < 2 or len(labels) != number:
        raise ConfigurationError(f"There are {number} held-out latents with {len(labels)} labels; expected 2 or more.")
    if int(labels.max()) >= num_classes or int(labels.min()) < 0:
        raise ConfigurationError(f"A label is {int(labels.max())}; the classifier knows 0 to {num_classes - 1}.")
    log_snr = np.arange(min_log_snr, max_log_snr + _LEVEL / 2, _LEVEL)
    mine, shape, found = ranks.share(number), tuple(latents.shape[1:]), []
    with evaluating([model.network]):
        for k, level in enumerate(log_snr):
            alpha, sigma = (math.sqrt(1 / (1 + math.exp(-sign * level))) for sign in (1, -1))
            rows = []
            for ids in mine.split(batch_size):
                noise = sample_noise(ids.tolist(), shape, seed, stream=_NOISE)
                z = (alpha * latents[ids] + sigma * noise).to(model.device)
                rows.append(model.log_probabilities(z, alpha, sigma).double())
            here = torch.cat(rows) if rows else torch.zeros(0, num_classes, dtype=torch.float64, device=model.device)
            found.append(ranks.gather_rows(here, mine, number))
            progress(k + 1, len(log_snr))
    every = torch.stack(found)  # (levels, N, K)
    right = (every.argmax(2) == labels).double()
    nats = torch.stack([F.nll_loss(each, labels, reduction="none") for each in every])
    errors = [
        float(multiclass_calibration_error(each.exp().float(), labels, num_classes, n_bins=_BINS, norm="l1"))
        for each in every
    ]
    chance = float(labels.bincount().max() / number)
    unknown = np.full(len(log_snr), -1)

    def curve(per_latent: Tensor) -> Curve:
        value = per_latent.mean(1).numpy()
        width = student(number) * per_latent.std(1).numpy() / number**0.5
        return Curve.around(unknown, log_snr, value, width)

    return ProbeRecord(
        PROBE,
        step,
        curves={
            "classifier_accuracy": curve(right),
            "classifier_chance": Curve(unknown, log_snr, np.full(len(log_snr), chance)),
            "classifier_nats": curve(nats),
            "classifier_calibration": Curve(unknown, log_snr, np.array(errors)),
        },
        metrics=METRICS,
        provenance={"num_images": number, "num_classes": num_classes, "seed": seed, "weights": model.weights},
        fingerprints={
            "grid": fingerprint(log_snr.tolist()),
            "codec": fingerprint(model.codec),
            "held_out": fingerprint(
                number, seed, labels.tolist(), [f"{m:.3e}" for m in latents.flatten(1).mean(1)[:64]]
            ),
        },
    )
