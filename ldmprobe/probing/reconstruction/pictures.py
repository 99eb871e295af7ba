"""Pictures of reconstructions, and of what the prior decodes to."""

from __future__ import annotations

import torch

from ldmprobe.io.metric import Metric
from ldmprobe.models.autoencoder import has_codebook, has_posterior
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.probing.analyses import Findings
from ldmprobe.probing.analyses.samples import png_bytes
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.reconstruction.measure import PerImage, Reconstructed
from ldmprobe.probing.reconstruction.originals import Originals

CONTRAST = 4  # of differences
PRIOR = Metric(
    "prior_samples", "Decoded samples of the prior",
    "Decoded N(0, I), or codes drawn at random. They are noise by design: nothing in training asks the prior to look "
    "like data, and to draw from latents as they are is what the diffusion model is for.", shown="headline",
)  # fmt: skip


class Pictures(PerImage):
    """The first held-out images, each above its reconstruction and their difference."""

    metrics = (
        Metric(
            "reconstructions", "Reconstructions of held-out images",
            f"Top: the image. Middle: its reconstruction. Bottom: {CONTRAST} times their difference, gray where there "
            "is none.", shown="headline",
        ),
    )  # fmt: skip

    def __init__(self, model: AutoencoderModel, originals: Originals, number: int) -> None:
        channels, height, width = originals.shape
        self.row_shape = (channels, 3 * height, width)
        super().__init__(model, originals)
        self.num_images = min(number, originals.num_images)

    def update(self, batch: Reconstructed) -> None:
        difference = CONTRAST * (batch.reconstructions - batch.images)
        self.keep(batch, torch.cat([batch.images, batch.reconstructions, difference.clamp(-1, 1)], dim=2))

    def finish(self, ranks: Ranks) -> Findings:
        return Findings(images={"reconstructions": [png_bytes(column) for column in self.gather(ranks)]})


def prior_samples(model: AutoencoderModel, number: int, seed: int) -> dict[str, list[bytes]]:
    """Return pictures of decoded N(0, I), or of codes drawn at random; none of an autoencoder that has no prior."""
    generator = torch.Generator().manual_seed(seed)
    channels, *places = model.latent_shape
    if has_posterior(model.network):
        latents = torch.randn(number, channels, *places, generator=generator)
    elif has_codebook(model.network):
        codes = model.network.quantize.embedding.weight.detach().cpu()
        drawn = torch.randint(len(codes), (number, *places), generator=generator)
        latents = codes[drawn].movedim(-1, 1).float()
    else:
        return {}
    return {"prior_samples": [png_bytes(image) for image in model.decode(latents.to(model.device))]}
