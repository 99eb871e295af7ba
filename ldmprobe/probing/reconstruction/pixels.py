"""How far reconstructions are from the images: PSNR, SSIM, a perceptual distance, and skill over PCA."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from ldmprobe.analysis.intervals import student
from ldmprobe.io.metric import Metric
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.models.pixels import decibels
from ldmprobe.probing.analyses import Findings
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.reconstruction.measure import Measure, PerImage, Reconstructed
from ldmprobe.probing.reconstruction.originals import Originals

_WINDOW = 11  # pixels of SSIM's
_NO_ERROR = 1e-9  # of PCA's, beside the range of pixels: as many components as images have


class PixelError(PerImage):
    """Squared error, and what a linear autoencoder makes of the same images with as many numbers."""

    metrics = (
        Metric(
            "psnr", "PSNR",
            "10 log10(4/MSE) of held-out images in [−1, 1], the mean over all pixels of all images. ± is 95 % over "
            "images.", "dB", good="higher", spread="psnr_half_width", beside=("pca_psnr",), shown="headline",
        ),
        Metric("psnr_half_width", "Half-width of PSNR's interval", "", "dB", shown="record"),
        Metric(
            "pca_psnr", "PCA with as many numbers",
            "The best linear autoencoder with as many entries as a latent has, fitted on training images, on the same "
            "held-out ones.", "dB", good="higher", shown="record",
        ),
        Metric(
            "skill_over_pca", "Skill over PCA",
            "1 − MSE/MSE of PCA with as many numbers as a latent has: above 0, the autoencoder does what no linear one "
            "can.", "1 − MSE ÷ PCA's", good="higher", ideal=0.0, shown="headline",
        ),
    )  # fmt: skip

    def update(self, batch: Reconstructed) -> None:
        self.keep(batch, (batch.reconstructions - batch.images).square().flatten(1).mean(1))

    def finish(self, ranks: Ranks) -> Findings:
        errors = self.gather(ranks)
        means = torch.stack([errors.mean(), self.originals.pca_error.mean().to(errors)])
        (mse, linear), (psnr, pca_psnr) = means.tolist(), decibels(means).tolist()
        width = student(len(errors)) * float(errors.std()) / math.sqrt(len(errors))
        scalars = {"psnr": psnr, "psnr_half_width": 0.0 if mse == 0 else 10 / math.log(10) * width / mse}
        if linear > _NO_ERROR * (self.originals.high - self.originals.low) ** 2:
            scalars |= {"pca_psnr": pca_psnr, "skill_over_pca": 1 - mse / linear}
        return Findings(scalars)


class StructuralSimilarity(PerImage):
    """SSIM by torchmetrics, of images that its window of 11 pixels fits into."""

    metrics = (
        Metric(
            "ssim", "SSIM",
            "Structural similarity (Wang et al., 2004) in a Gaussian window of 11 pixels, mean over held-out images.",
            "SSIM, 1 is the image itself", good="higher", shown="headline",
        ),
    )  # fmt: skip

    @classmethod
    def applies(cls, model: AutoencoderModel, originals: Originals) -> bool:
        return min(originals.shape[1:]) >= _WINDOW

    def update(self, batch: Reconstructed) -> None:
        span = self.originals.high - self.originals.low
        found = structural_similarity_index_measure(
            batch.reconstructions, batch.images, data_range=span, reduction="none"
        )
        assert isinstance(found, Tensor)
        self.keep(batch, found.reshape(-1))


class PerceptualError(Measure):
    """The mean distance of two batches of images in a perceptual network."""

    metrics = (
        Metric(
            "perceptual_distance", "Perceptual distance",
            "Distance in the features of the perceptual network, mean over held-out images. It compares only with "
            "distances in the same network.", "distance, lower is better", good="lower", shown="headline",
        ),
    )  # fmt: skip

    def __init__(self, model: AutoencoderModel, originals: Originals, perceptual: nn.Module) -> None:
        super().__init__(model, originals)
        self.perceptual = perceptual
        self._sum = torch.zeros((), dtype=torch.float64, device=model.device)

    def update(self, batch: Reconstructed) -> None:
        self._sum += len(batch.images) * self.perceptual(batch.images, batch.reconstructions).double()

    def finish(self, ranks: Ranks) -> Findings:
        return Findings({"perceptual_distance": float(ranks.all_reduce_sum(self._sum)) / self.originals.num_images})
