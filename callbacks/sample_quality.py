"""SampleQuality: FID and KID of samples, and copies of training images among them, tracked over training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn

from ldmprobe.callbacks.probe_callback import ProbeCallback, run_directory
from ldmprobe.callbacks.probe_data import data_fingerprint, data_source, has_held_out, prepared, training_images_at
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.diffusion.grids import Grid
from ldmprobe.diffusion.samplers import Sampler
from ldmprobe.errors import ConfigurationError
from ldmprobe.features.choose import chosen_network
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.run_directory import set_aside
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.guidance import Guidance
from ldmprobe.probing.copies import QUALITY, CopySearch
from ldmprobe.probing.probe import Ranks, evaluating
from ldmprobe.probing.quality import probe_quality, refuse_too_few
from ldmprobe.probing.real_features import RealFeatures, check_feature_network, network_fingerprint
from ldmprobe.probing.sampling import Sampling

_log = logging.getLogger(__name__)
_ORDER = 0  # the seed that data are read with which may be shuffled, so that they are in the same order again


class SampleQuality(ProbeCallback[DiffusionModel]):
    """Sample from fixed noise, by DDIM if no other sampler is named, with the EMA weights if there are any, decode, and
    compare with real images.

    What it finds: ``probing.quality.METRICS`` (docs/METRICS.md). It also looks for copies of training images among the
    samples, and shows the likeliest beside the images they may be copies of; held-out images are looked at in the same
    way, to know what chance and near-duplicates do.

    Distances in different feature networks, or of different numbers of samples, do not compare. Real images are not
    passed through the autoencoder, whose faults are part of the distance. Their features are computed once, by rank
    zero, and kept in the run's directory, in ``real_features.safetensors`` and ``held_out_features.safetensors``; a run
    that goes on with other data, or another network, computes them anew.

    Args:
        feature_network: "builtin:digits", "builtin:cifar10", "imagenet" or a folder (see
            ``FeatureNetwork``); "inception" for what is published (``pip install 'ldmprobe[fid]'``, see
            ``Inception``); or any module: images (N, C, H, W) in [−1, 1] → features (N, ``num_features``).
        every_n_steps: optimizer steps between probes.
        num_samples: N, at least 2; up to ``num_features`` of them, FID's covariance is singular, which is warned of.
        num_steps: S, sampling steps.
        sampler: default: DDIM.
        grid: which noise levels are visited; default: the schedule's own.
        num_real: real images, as many as there are up to this; copies are looked for among so many training images.
        real: which: "train" or "held_out".
        guidance: scale of classifier-free guidance, 1 for none; or another Guidance.
        kid_subset_size: features in each of KID's subsets, at most ``num_samples``.
        seed: of the starting noise, the same at every probe, and of KID's subsets.
        batch_size: latents through the network at once.
    """

    records = QUALITY

    def __init__(
        self,
        feature_network: str | nn.Module,
        every_n_steps: int = 1000,
        num_samples: int = 2048,
        num_steps: int = 50,
        sampler: Sampler | None = None,
        grid: Grid | None = None,
        num_real: int = 10_000,
        real: Literal["train", "held_out"] = "train",
        guidance: Guidance | float = 1.0,
        kid_subset_size: int = 1000,
        seed: int = 0,
        batch_size: int = 256,
    ) -> None:
        super().__init__(every_n_steps)
        refuse_too_few(num_samples, kid_subset_size)
        if num_real < kid_subset_size:
            raise ConfigurationError(
                f"SampleQuality got num_real {num_real}; expected at least kid_subset_size, {kid_subset_size}."
            )
        if real not in ("train", "held_out"):
            raise ConfigurationError(f"SampleQuality got real {real!r}; expected 'train' or 'held_out'.")
        self.sampling = Sampling.of(num_samples, num_steps, sampler, grid, guidance, batch_size, seed)
        self.feature_network, self.num_real, self.real = feature_network, num_real, real
        self.kid_subset_size = kid_subset_size
        self._network: nn.Module | None = None
        self._real_features: RealFeatures | None = None
        self._copies: CopySearch | None = None

    def check(self, model: DiffusionModel) -> None:
        self.sampling.levels(model)
        with evaluating([]):  # a network is initialized before its weights are read
            self._network = chosen_network(self.feature_network)
        with evaluating(model.modules):
            image_shape = model.codec.image_shape(model.latent_shape)
        num_features = check_feature_network(self._network, image_shape, model.device)
        if self.sampling.num_samples <= num_features:
            _log.warning(
                "SampleQuality has %d samples for %d features: too few for FID's covariance, so that FID is large "
                "whatever the samples; set its num_samples above %d, or read KID alone.",
                self.sampling.num_samples,
                num_features,
                num_features,
            )

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        model = self.subject(pl_module)
        assert self._network is not None
        if self._real_features is None:
            self._real_features = self._features(trainer, model, self._network, self.real, "real")
            self._copies = self._copy_search(trainer, model, self._network, self._real_features)
        self.sampling = prepared(trainer, self.sampling)
        with self.running(trainer, ranks) as how:
            return probe_quality(
                model,
                self._real_features,
                self._network,
                self.sampling,
                self.kid_subset_size,
                copies=self._copies,
                **how,
            )

    def _copy_search(
        self, trainer: L.Trainer, model: DiffusionModel, network: nn.Module, real: RealFeatures
    ) -> CopySearch:
        def images(places: Sequence[int]) -> Tensor:
            """Return the training images of these places, read by rank zero for all ranks."""

            def make() -> Tensor:
                with evaluating([]):
                    torch.manual_seed(_ORDER)
                    return training_images_at(trainer, places)

            return from_rank_zero(trainer, make)

        if self.real == "held_out":
            return CopySearch(self._features(trainer, model, network, "train", "train"), images, real)
        try:
            return CopySearch(real, images, self._features(trainer, model, network, "held_out", "held_out"))
        except ConfigurationError as error:
            _log.warning("Copies among samples are counted, but not among held-out images beside them: %s", error)
            return CopySearch(real, images)

    def _features(
        self, trainer: L.Trainer, model: DiffusionModel, network: nn.Module, split: str, name: str
    ) -> RealFeatures:
        """Return the features that the run's directory keeps, if they are of this network and these images of these
        data, or new ones, computed by rank zero for all ranks.
        """
        path = run_directory(trainer) / f"{name}_features.safetensors"
        source = f"{split}, up to {self.num_real}"

        def make() -> RealFeatures:
            held_out = split == "held_out"
            if held_out and not has_held_out(trainer):
                raise ConfigurationError(
                    "SampleQuality got real 'held_out', but the Trainer has no validation data; give it some, or set "
                    "real to 'train'."
                    if self.real == "held_out"
                    else "the Trainer has no validation data."
                )
            data = data_fingerprint(trainer, held_out)
            if path.exists():
                found = RealFeatures.load(path)
                if (found.network, found.source, found.data) == (network_fingerprint(network), source, data):
                    return found
                set_aside(path.parent, [path])
            with evaluating([]):
                torch.manual_seed(_ORDER)
                batches = data_source(trainer).reference_images(self.num_real, held_out)
                made = RealFeatures.of(network, (batch["image"] for batch in batches), model.device, source)
            made = replace(made, data=data)
            made.save(path)
            return made

        return from_rank_zero(trainer, make)
