"""Pictures of reconstructions, and of what the prior decodes to."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmprobe.io.metric import Metric
from ldmprobe.models.autoencoder import has_codebook, has_posterior
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.probing.analyses import Findings
from ldmprobe.probing.analyses.samples import png_bytes
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.reconstruction.measure import Measure, Reconstructed
from ldmprobe.probing.reconstruction.originals import Originals

CONTRAST = 4  # of differences
PRIOR = Metric(
    "prior_samples", "Decoded samples of the prior",
    "Decoded N(0, I), or codes drawn at random. They are noise by design: nothing in training asks the prior to look "
    "like data, and to draw from latents as they are is what the diffusion model is for.", shown="headline",
)  # fmt: skip


class Pictures(Measure):
    """The first held-out images, each above its reconstruction and their difference."""

    metrics = (
        Metric(
            "reconstructions", "Reconstructions of held-out images",
            f"Top: the image. Middle: its reconstruction. Bottom: {CONTRAST} times their difference, gray where there "
            "is none.", shown="headline",
        ),
    )  # fmt: skip

    def __init__(self, model: AutoencoderModel, originals: Originals, number: int) -> None:
        super().__init__(model, originals)
        self.number = min(number, originals.num_images)
        self._ids: list[Tensor] = []
        self._columns: list[Tensor] = []

    def update(self, batch: Reconstructed) -> None:
        chosen = batch.image_ids < self.number
        images, found = (each[chosen.to(each.device)] for each in (batch.images, batch.reconstructions))
        self._ids.append(batch.image_ids[chosen])
        self._columns.append(torch.cat([images, found, (CONTRAST * (found - images)).clamp(-1, 1)], dim=2))

    def finish(self, ranks: Ranks) -> Findings:
        channels, height, width = self.originals.shape
        none = torch.empty(0, channels, 3 * height, width, device=self.model.device)
        ids = torch.cat([torch.empty(0, dtype=torch.long), *self._ids])
        columns = ranks.gather_rows(torch.cat([none, *self._columns]), ids, self.number)
        return Findings(images={"reconstructions": [png_bytes(column) for column in columns]})


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
