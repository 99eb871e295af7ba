"""What latents cost: nats of a posterior, channels that are used, codes that are used, bits per pixel."""

from __future__ import annotations

import math

import torch

from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve
from ldmprobe.models.autoencoder import has_codebook, has_posterior
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.models.quantization import nearest_codes
from ldmprobe.probing.analyses import Findings
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.reconstruction.measure import Measure, Reconstructed
from ldmprobe.probing.reconstruction.originals import Originals

ACTIVE_VARIANCE = 0.01
_BITS = Metric(
    "bits_per_pixel", "Bits per pixel",
    "What a latent costs: KL of the posterior from N(0, I), which is a bound, or log2 of the perplexity of codes times "
    "the places of a latent; by pixel of the image.", "bits per pixel", good="lower", shown="headline",
)  # fmt: skip


class PosteriorRate(Measure):
    """KL of the posterior from N(0, I), and which channels say anything: those whose posterior's mean varies over data
    (Burda et al., 2016, arXiv:1509.00519, section 5.2).
    """

    metrics = (
        Metric(
            "kl_nats", "KL of the posterior",
            "KL(q(z|x) ‖ N(0, I)) in nats per entry of the image, mean over held-out images: what the loss weighs by "
            "its kl_weight.", "nats per image entry", good="lower", shown="headline",
        ),
        Metric(
            "active_channels", "Active latent channels",
            f"Channels whose posterior's mean has a variance over held-out images above {ACTIVE_VARIANCE}, mean over "
            "places. The others have collapsed to the prior.", "channels", good="higher", shown="headline",
        ),
        Metric(
            "active_entries", "Active latent entries",
            f"Entries of a latent whose posterior's mean has a variance over held-out images above {ACTIVE_VARIANCE}.",
            "entries", good="higher",
        ),
        _BITS,
        Metric(
            "kl_per_channel", "KL by latent channel", "KL of the posterior by latent channel, summed over places: "
            "near 0 is a collapsed channel.", "nats per image", along="latent channel", shown="headline",
        ),
    )  # fmt: skip

    @classmethod
    def applies(cls, model: AutoencoderModel, originals: Originals) -> bool:
        return has_posterior(model.network)

    def __init__(self, model: AutoencoderModel, originals: Originals) -> None:
        super().__init__(model, originals)
        # Sums over images of KL, mean and squared mean of each entry.
        self._sums = torch.zeros(3, *model.latent_shape, dtype=torch.float64, device=model.device)

    def update(self, batch: Reconstructed) -> None:
        assert batch.posterior is not None
        mean, log_variance = batch.posterior.mean.double(), batch.posterior.logvar.double()
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)
        self._sums += torch.stack([kl.sum(0), mean.sum(0), (mean**2).sum(0)])

    def finish(self, ranks: Ranks) -> Findings:
        kl, mean, square = ranks.all_reduce_sum(self._sums).cpu() / self.originals.num_images
        variance = square - mean**2
        by_channel = kl.flatten(1).sum(1)
        pixels = math.prod(self.originals.shape[1:])
        total = float(by_channel.sum())
        scalars = {
            "kl_nats": total / math.prod(self.originals.shape),
            "active_channels": float((variance.flatten(1).mean(1) > ACTIVE_VARIANCE).sum()),
            "active_entries": float((variance > ACTIVE_VARIANCE).sum()),
            "bits_per_pixel": total / math.log(2) / pixels,
        }
        return Findings(scalars, {"kl_per_channel": Curve.along(by_channel.numpy())})


class CodeUsage(Measure):
    """How many codes are taken, over all held-out images: a batch's perplexity is bounded by its size."""

    metrics = (
        Metric(
            "codes_used", "Codes used", "Share of the codebook that is the nearest code anywhere in a held-out image.",
            "share of codes", good="higher", shown="headline",
        ),
        Metric(
            "perplexity", "Perplexity of codes",
            "exp of the entropy of how often each code is taken: as many codes, taken equally often, would say as "
            "much.", "codes", good="higher", shown="headline",
        ),
        _BITS,
    )  # fmt: skip

    @classmethod
    def applies(cls, model: AutoencoderModel, originals: Originals) -> bool:
        return has_codebook(model.network)

    def __init__(self, model: AutoencoderModel, originals: Originals) -> None:
        super().__init__(model, originals)
        self._counts = torch.zeros(model.network.quantize.n_e, dtype=torch.float64, device=model.device)

    def update(self, batch: Reconstructed) -> None:
        codes = nearest_codes(self.model.network, batch.latents).flatten()
        self._counts += torch.bincount(codes, minlength=len(self._counts))

    def finish(self, ranks: Ranks) -> Findings:
        counts = ranks.all_reduce_sum(self._counts).cpu()
        nats = float(torch.special.entr(counts / counts.sum()).sum())
        places = math.prod(self.model.latent_shape[1:]) / math.prod(self.originals.shape[1:])
        return Findings(
            {
                "codes_used": float((counts > 0).double().mean()),
                "perplexity": math.exp(nats),
                "bits_per_pixel": nats / math.log(2) * places,
            }
        )
