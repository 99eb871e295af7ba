"""KeptLatents: the real latents that a probe looks at, read once and kept from probe to probe."""

from __future__ import annotations

from collections.abc import Iterable

import lightning as L

from ldmprobe.callbacks.probe_callback import run_directory
from ldmprobe.callbacks.probe_data import data_source
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.data.images import ImageData
from ldmprobe.lightning_private import callbacks_of
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics, latents_of
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.real_data import loaders_in, read_beside, reference_at


class KeptLatents:
    """Real latents of one kind of data with their conditions, encoded by rank zero for all ranks at the first probe.
    Where text encoders are trained, conditions change, and all but the reference is encoded anew at each probe.

    Args:
        num_images: training images, or held-out ones, as many as there are up to this.
        num_reference: training images that the reference is fitted on; of the ``num_reference`` of all callbacks the
            largest counts, as they share it.
        held_out: batches of held-out images; default: of the data.
        data: whose images these are; default: what the Trainer trains on.
        name: of the reference's file in the run's directory.
    """

    def __init__(
        self,
        num_images: int = 0,
        num_reference: int = 0,
        held_out: Iterable[object] | None = None,
        data: ImageData | None = None,
        name: str = "reference",
    ) -> None:
        self._num_images, self._num_reference, self._batches = num_images, num_reference, held_out
        self._data, self._name = data, name
        self._reference: LatentStatistics | None = None
        self._kept: dict[bool, HeldOut] = {}  # by whether they are held out

    def reference(self, trainer: L.Trainer, model: DiffusionModel) -> LatentStatistics:
        """Return the reference of the run's directory; where there is none, one that is fitted and put there."""
        if self._reference is None:
            self._reference = from_rank_zero(trainer, lambda: self._read_or_fit(trainer, model))
        return self._reference

    def held_out(self, trainer: L.Trainer, model: DiffusionModel) -> HeldOut:
        """Return held-out latents.

        Raises:
            ConfigurationError: there are none.
        """
        return self._encoded(trainer, model, held_out=True)

    def training(self, trainer: L.Trainer, model: DiffusionModel) -> HeldOut:
        """Return training latents."""
        return self._encoded(trainer, model, held_out=False)

    def _encoded(self, trainer: L.Trainer, model: DiffusionModel, held_out: bool) -> HeldOut:
        def make() -> HeldOut:
            if held_out and self._batches is not None:
                batches = read_beside(loaders_in(self._batches), self._num_images)
            else:
                batches = iter((self._data or data_source(trainer)).reference_batches(self._num_images, held_out))
            with evaluating(model.modules):
                return HeldOut.encode(model.codec, model.conditioning, batches)

        if held_out not in self._kept or model.conditioning.trained:
            self._kept[held_out] = from_rank_zero(trainer, make)
        return self._kept[held_out]

    def _read_or_fit(self, trainer: L.Trainer, model: DiffusionModel) -> LatentStatistics:
        path, source = run_directory(trainer) / f"{self._name}.safetensors", self._data or data_source(trainer)
        number = max(self._num_reference, *(vars(each).get("num_reference", 0) for each in callbacks_of(trainer)))
        rows = source.identity.train if isinstance(source, ImageData) else None
        with evaluating(model.modules):
            reference = reference_at(
                path, model, lambda: latents_of(model.codec, source.reference_batches(number)), rows
            )
        if not path.exists():
            reference.save(path)
            # As a resumed run will: fitted tensors have other strides, and so other last bits.
            reference = LatentStatistics.load(path)
        return reference
