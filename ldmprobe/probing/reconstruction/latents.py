"""What latents are like for a diffusion model: their moments by channel, and their spectrum beside that of images."""

from __future__ import annotations

import torch

from ldmprobe.analysis.radial_spectrum import HIGHEST, cosine_coefficients, radial_mean, spectral_slope
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.probing.analyses import Findings
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.reconstruction.measure import Measure, Reconstructed
from ldmprobe.probing.reconstruction.originals import Originals


class LatentMoments(Measure):
    """Mean and variance by channel, of latents without scale."""

    metrics = (
        Metric(
            "latent_mean", "Mean of latents by channel",
            "Of held-out images, before any scale. What scale and shift by channel would take out.", "latent entry",
            along="latent channel",
        ),
        Metric(
            "latent_variance", "Variance of latents by channel",
            "Of held-out images, before any scale. Channels of very different variance get very different shares of a "
            "diffusion model's loss, unless they are scaled one by one.", "variance", along="latent channel", log=True,
            shown="headline",
        ),
    )  # fmt: skip

    def __init__(self, model: AutoencoderModel, originals: Originals) -> None:
        super().__init__(model, originals)
        self._sums = torch.zeros(2, model.latent_shape[0], dtype=torch.float64, device=model.device)

    def update(self, batch: Reconstructed) -> None:
        z = batch.latents.double()
        self._sums += torch.stack([z.sum((0, 2, 3)), (z**2).sum((0, 2, 3))])

    def finish(self, ranks: Ranks) -> Findings:
        places = self.model.latent_shape[1] * self.model.latent_shape[2]
        mean, square = (ranks.all_reduce_sum(self._sums).cpu() / (self.originals.num_images * places)).numpy()
        curves = {"latent_mean": Curve.along(mean), "latent_variance": Curve.along(square - mean**2)}
        return Findings(curves=curves)


class LatentSpectrum(Measure):
    """Radial spectrum of latents, each channel divided by its variance, beside that of the images."""

    metrics = (
        Metric(
            "latent_spectrum", "Radial spectrum of latents",
            "Variance of cosine coefficients by spatial frequency, beside that of the images, both divided by their "
            "mean. Latents that fall less steeply than images have more in their highest frequencies, which a "
            "diffusion model learns last.", "share of variance, mean is 1", beside=("image_spectrum",), log=True,
            along="half cycles across the image", log_along=True, shown="headline",
        ),
        Metric(
            "image_spectrum", "images", "The same of the held-out images.", "share of variance, mean is 1", log=True,
            along="half cycles across the image", log_along=True, shown="record",
        ),
        Metric(
            "latent_slope", "Spectral slope of latents",
            f"Slope of the spectrum in a plot of both logarithms, over 2 to {HIGHEST} half cycles, as far as latents "
            "have such.", "d ln S/d ln r", beside=("image_slope",), shown="headline",
        ),
        Metric(
            "image_slope", "images", "The same of held-out images, over the same frequencies.", "d ln S/d ln r",
            shown="record",
        ),
    )  # fmt: skip

    def __init__(self, model: AutoencoderModel, originals: Originals) -> None:
        super().__init__(model, originals)
        self._sums = torch.zeros(2, *model.latent_shape, dtype=torch.float64, device=model.device)

    def update(self, batch: Reconstructed) -> None:
        coefficients = cosine_coefficients(batch.latents.double())
        self._sums += torch.stack([coefficients.sum(0), (coefficients**2).sum(0)])

    def finish(self, ranks: Ranks) -> Findings:
        mean, square = ranks.all_reduce_sum(self._sums).cpu() / self.originals.num_images
        variance = (square - mean**2).clamp(min=0)
        by_channel = variance.mean((1, 2), keepdim=True)
        latents, images = radial_mean(variance / by_channel.clamp(min=1e-30)), self.originals.spectrum
        slopes = {"latent_slope": spectral_slope(latents), "image_slope": spectral_slope(images[: len(latents)])}
        curves = {"latent_spectrum": latents, "image_spectrum": images}
        return Findings(slopes, {name: Curve.along(s / max(s.mean(), 1e-30)) for name, s in curves.items()})
