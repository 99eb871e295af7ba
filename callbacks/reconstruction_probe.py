"""ReconstructionProbe: what an autoencoder in training keeps of held-out images, and what its latents are like."""

from __future__ import annotations

import logging
import math

import lightning as L
from torch import nn

from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.callbacks.probe_data import data_source, has_held_out
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.features.choose import chosen_network
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.autoencoder_model import AutoencoderModel, HasAutoencoder
from ldmprobe.probing.probe import Ranks, evaluating
from ldmprobe.probing.real_features import check_feature_network
from ldmprobe.probing.reconstruction import PROBE, Originals, probe_reconstruction

_log = logging.getLogger(__name__)


class ReconstructionProbe(ProbeCallback[AutoencoderModel]):
    """Encodes held-out images and decodes them, by the EMA weights if there are any and the posterior's mode.

    What it finds: ``probing.reconstruction.METRICS`` (docs/METRICS.md).

    Args:
        feature_network: for rFID and rKID, as SampleQuality's; another than the autoencoder's perceptual loss is in,
            which would flatter it. Default: neither.
        every_n_steps: optimizer steps between probes.
        num_images: held-out images, as many as there are up to this.
        num_reference: training images that PCA is fitted on.
        perceptual: such as PerceptualLoss, for a perceptual distance; default: none.
        num_pictures: images that are shown, and decoded samples of the prior.
        kid_subset_size: features in each of rKID's subsets.
        batch_size: images through the autoencoder at once.
        seed: of the prior's samples and of rKID's subsets.
    """

    records = PROBE

    def __init__(
        self,
        feature_network: str | nn.Module | None = None,
        every_n_steps: int = 500,
        num_images: int = 1000,
        num_reference: int = 2048,
        perceptual: nn.Module | None = None,
        num_pictures: int = 10,
        kid_subset_size: int = 500,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps)
        check_numbers("ReconstructionProbe", 8, num_images=num_images, num_reference=num_reference)
        self.feature_network, self.perceptual = feature_network, perceptual
        self.num_images, self.num_reference, self.num_pictures = num_images, num_reference, num_pictures
        self.kid_subset_size, self.batch_size, self.seed = kid_subset_size, batch_size, seed
        self._network: nn.Module | None = None
        self._originals: Originals | None = None

    def subject(self, pl_module: L.LightningModule) -> AutoencoderModel:
        if not isinstance(pl_module, HasAutoencoder):
            raise ConfigurationError(
                f"{type(pl_module).__name__} trains no autoencoder that could be probed: use ldmprobe.Autoencoding, or "
                "give it a method `autoencoder_model(self) -> ldmprobe.AutoencoderModel`."
            )
        return pl_module.autoencoder_model()

    def check(self, model: AutoencoderModel) -> None:
        if self.feature_network is None:
            return
        with evaluating([]):  # a network is initialized before its weights are read
            self._network = chosen_network(self.feature_network)
        if model.image_shape:
            features = check_feature_network(self._network, model.image_shape, model.device)
            if self.num_images <= features:
                _log.warning(
                    "ReconstructionProbe has %d images for %d features: too few for rFID's covariance; set its "
                    "num_images above %d, or read rKID alone.",
                    self.num_images,
                    features,
                    features,
                )

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        model = self.subject(pl_module)
        if self._originals is None:
            self._originals = from_rank_zero(trainer, lambda: self._originals_of(trainer, model))
        with self.running(trainer, ranks) as how:
            return probe_reconstruction(
                model,
                (batch["image"] for batch in data_source(trainer).reference_images(self.num_images, held_out=True)),
                self._originals,
                self._network,
                self.perceptual,
                num_pictures=self.num_pictures,
                kid_subset_size=self.kid_subset_size,
                batch_size=self.batch_size,
                seed=self.seed,
                **how,
            )

    def _originals_of(self, trainer: L.Trainer, model: AutoencoderModel) -> Originals:
        if not has_held_out(trainer):
            raise ConfigurationError(
                "ReconstructionProbe looks at held-out images, and the Trainer has no validation data; give it some."
            )
        with evaluating(model.modules):  # data may be shuffled
            training, held_out = (
                (batch["image"] for batch in data_source(trainer).reference_images(number, held_out=of_held_out))
                for number, of_held_out in ((self.num_reference, False), (self.num_images, True))
            )
            return Originals.of(training, held_out, math.prod(model.latent_shape), self._network, model.device)
