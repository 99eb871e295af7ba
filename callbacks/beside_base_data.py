"""BesideBaseData: a probe of two kinds of data, the base model's own and those that it is finetuned on."""

from __future__ import annotations

import logging

import lightning as L

from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.callbacks.probe_data import KeptLatents
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.data.images import ImageData
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.forgetting import KindOfData
from ldmprobe.probing.probe import evaluating
from ldmprobe.tracking.scalars import Detail

_log = logging.getLogger(__name__)


class BesideBaseData(ProbeCallback[DiffusionModel]):
    """What probes of both kinds of data have in common; its arguments are ``Forgetting``'s."""

    def __init__(
        self,
        base_data: ImageData,
        every_n_steps: int = 1000,
        num_images: int = 512,
        num_draws: int = 512,
        batch_size: int = 256,
        num_reference: int = 4096,
        seed: int = 0,
        detail: Detail = "bands",
    ) -> None:
        super().__init__(every_n_steps, detail)
        check_numbers(type(self).__name__, 8, num_images=num_images)
        check_numbers(type(self).__name__, 32, num_draws=num_draws)
        check_numbers(type(self).__name__, 1, batch_size=batch_size)
        if not isinstance(base_data, ImageData):
            raise ConfigurationError(
                f"{type(self).__name__} got base_data of {type(base_data).__name__}; expected a ldmprobe.ImageData."
            )
        self.base_data = base_data
        self.num_images, self.num_draws, self.batch_size = num_images, num_draws, batch_size
        self.num_reference, self.seed = num_reference, seed
        self._latents = (
            KeptLatents(num_images, num_reference, data=base_data, name="base_reference"),
            KeptLatents(num_images, num_reference),
        )
        self._told = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        from_rank_zero(trainer, self.base_data.prepare_data)
        super().on_fit_start(trainer, pl_module)

    def check(self, model: DiffusionModel) -> None:
        try:
            with evaluating(model.modules):
                self.base_data.setup("fit")
                shape = model.codec.latent_shape(self.base_data.image_shape)
                if tuple(shape) != tuple(model.latent_shape):
                    raise ConfigurationError(
                        f"its images become latents of shape {tuple(shape)}, the model's are "
                        f"{tuple(model.latent_shape)}; set its `image_size` and `channels`."
                    )
                model.conditioning.prepare(model.network, self.base_data, model.codec)
                self.base_data.use_latents(model.codec, model.conditioning)
        except ConfigurationError as error:
            raise ConfigurationError(f"{type(self).__name__} cannot use its base_data: {error}") from error

    def kinds_of_data(self, trainer: L.Trainer, model: DiffusionModel) -> tuple[KindOfData, KindOfData]:
        """Return the base model's data and the Trainer's; collective."""
        of_base, of_new = (
            KindOfData(kept.held_out(trainer, model), kept.reference(trainer, model)) for kept in self._latents
        )
        base_images, new_images = (len(of.held_out.latents) for of in (of_base, of_new))
        if not self._told and min(base_images, new_images) < self.num_images:
            self._told = True
            _log.warning(
                "%s was to measure on %d held-out images of each kind; there are %d of the base model's and %d "
                "of the new. Its intervals are of these: give larger held-out splits where they are too wide.",
                type(self).__name__,
                self.num_images,
                base_images,
                new_images,
            )
        return of_base, of_new
