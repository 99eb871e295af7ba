"""Inception: the feature network that published FIDs are in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError, needing
from ldmprobe.models.pixels import as_bytes


class Inception(nn.Module):
    """Inception v3 up to its last pooling, with the weights and the resizing of the first FID (Heusel et al., 2017,
    arXiv:1706.08500), by torch-fidelity. Images (N, 1 or 3, H, W) in [−1, 1] → features (N, 2048).

    torch-fidelity downloads the weights (some 90 MB) at the first use into torch's hub cache, and finds them there ever
    after. Images are rounded to 8 bits, as on disk; gray ones are repeated. Trained on photographs: of other images its
    features say little.

    Raises:
        ConfigurationError: torch-fidelity is not installed, or the weights cannot be downloaded.
    """

    num_features = 2048
    description = "Inception v3, last pooling (torch-fidelity)"

    def __init__(self) -> None:
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            # Its layers are initialized before the weights are read.
            with needing("torch_fidelity", "Inception", ", or choose another network"), torch.random.fork_rng([]):
                self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], antialias=False)
        except OSError as error:
            raise ConfigurationError(
                f"Inception's weights cannot be downloaded ({error}); put the file into "
                f"{torch.hub.get_dir()}/checkpoints, or choose another feature network."
            ) from error
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise ConfigurationError(f"Inception got images of {images.shape[1]} channels; expected 1 or 3.")
        return self.network(as_bytes(images).expand(-1, 3, -1, -1))
