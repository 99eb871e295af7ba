"""DiffusersSchedule: a noise schedule with the diffusers scheduler that it was read from."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from ldmprobe.diffusion.prediction import Prediction
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError
from ldmprobe.types import PlainValues

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

_NO_TABLE = {
    "thresholding": "dynamic thresholding, which has no closed form",
    "use_dynamic_shifting": "noise levels that depend on the size of the image",
}


class DiffusersSchedule(NoiseSchedule):
    """A noise schedule with the diffusers scheduler that it was read from.

    Attributes:
        scheduler: the scheduler.

    Raises:
        ConfigurationError: the scheduler clips by dynamic thresholding or shifts its noise levels by the image's size.
    """

    def __init__(
        self,
        scheduler: SchedulerMixin,
        alpha: Tensor,
        sigma: Tensor,
        prediction: Prediction,
        model_time: Tensor | None = None,
        prior_std: float = 1.0,
    ) -> None:
        self.scheduler, self.name = scheduler, type(scheduler).__name__
        for setting, what in _NO_TABLE.items():
            if scheduler.config.get(setting, False):
                raise ConfigurationError(f"{self.name} has `{setting}`: {what}; set `{setting}: false`.")
        super().__init__(alpha, sigma, prediction, model_time, prior_std)

    @property
    def description(self) -> PlainValues:
        settings = {name: value for name, value in dict(self.scheduler.config).items() if not name.startswith("_")}
        return {"class_name": type(self.scheduler).__name__, **settings}

    @abstractmethod
    def read_again(self, scheduler: SchedulerMixin) -> DiffusersSchedule:
        """Return the schedule of the same kind of another scheduler, the one of ``sampling_scheduler``."""

    def with_settings(self, **settings: object) -> NoiseSchedule:
        """Return the same schedule but for these settings of its scheduler, such as ``rescale_betas_zero_snr`` (Lin et
        al., 2023, arXiv:2305.08891): those of the class of ``sampling_scheduler``, which it becomes.

        Raises:
            ConfigurationError: there is no such setting, or the scheduler cannot have it.
        """
        cls = type(self.sampling_scheduler())
        known = inspect.signature(cls).parameters
        if unknown := sorted(settings.keys() - known.keys()):
            raise ConfigurationError(
                f"{cls.__name__} has no setting {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}."
            )
        try:
            scheduler = self.sampling_scheduler(**settings)
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise ConfigurationError(
                f"The {type(self.scheduler).__name__} cannot have the settings {settings}: {error}."
            ) from error
        changed = self.read_again(scheduler)
        changed.native_grid(1)  # knows the spacings
        return changed
