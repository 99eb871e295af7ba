"""rFID and rKID: distances of the reconstructions from the images in the features of a network."""

from __future__ import annotations

import torch
from torch import nn

from ldmprobe.io.metric import Metric
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.probing.analyses import Findings
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.quality import fid_and_kid
from ldmprobe.probing.real_features import IMAGES_AT_ONCE
from ldmprobe.probing.reconstruction.measure import PerImage, Reconstructed
from ldmprobe.probing.reconstruction.originals import Originals


class FeatureDistance(PerImage):
    """Fréchet and kernel distance, as of samples (``probing.quality``)."""

    metrics = (
        Metric(
            "rfid", "rFID",
            "Fréchet distance of reconstructions from the same held-out images, in the features of a network that was "
            "not trained on. No samples of a diffusion model on these latents can be expected to get below it. It "
            "compares only with the same network, images and number of them.",
            "rFID, lower is better", good="lower", shown="headline",
        ),
        Metric(
            "rkid", "rKID",
            "Kernel distance of the same features, which their number does not bias. Bars are the standard deviation "
            "over its random subsets.", "rKID, lower is better", good="lower", ideal=0.0, spread="rkid_std",
        ),
        Metric("rkid_std", "Standard deviation of rKID over its subsets", "", "rKID", shown="record"),
    )  # fmt: skip

    def __init__(
        self, model: AutoencoderModel, originals: Originals, network: nn.Module, kid_subset_size: int, seed: int
    ) -> None:
        self.row_shape = tuple(originals.features.shape[1:])
        super().__init__(model, originals)
        self.network, self.kid_subset_size, self.seed = network, kid_subset_size, seed

    def update(self, batch: Reconstructed) -> None:
        parts = batch.reconstructions.split(IMAGES_AT_ONCE)
        self.keep(batch, torch.cat([self.network(part).double() for part in parts]))

    def finish(self, ranks: Ranks) -> Findings:
        real, features = self.originals.features, self.gather(ranks)
        found = (0.0,) * 3 if ranks.rank else fid_and_kid(real, features, self.kid_subset_size, self.seed)
        rfid, rkid, spread = ranks.all_reduce_sum(torch.tensor(found).double().to(self.model.device)).tolist()
        return Findings({"rfid": rfid, "rkid": rkid, "rkid_std": spread})
