"""What tests share: the one tolerance convention, and small models made on the spot."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor, nn

from ldmprobe.cli import main
from ldmprobe.data.columns import CaptionColumn, ImageColumn, LabelColumn
from ldmprobe.data.images import ImageData
from ldmprobe.data.rows import RowReader
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.trajectory import Predict
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.guidance import Asked, ClassifierFreeGuidance

FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}  # float64 mathematics
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}  # float32 against a closed form
WHOLE_PATH = {"rtol": 1e-4, "atol": 1e-4}  # a whole sampling path against diffusers


def refused(message: str) -> pytest.RaisesExc[ConfigurationError]:
    """Expect an error that a user can put right, with these words (a regular expression)."""
    return pytest.raises(ConfigurationError, match=message)


def refuses(capsys: pytest.CaptureFixture[str], command: Sequence[object], *texts: str) -> str:
    """What the command line says to what it refuses: one error, with these texts in it."""
    assert main([str(word) for word in command]) == 2
    error = capsys.readouterr().err
    for text in texts:
        assert text in error
    assert error.count("error:") == 1
    assert "Traceback" not in error
    return error


def ready(data: ImageData) -> ImageData:
    """The data, set up."""
    data.setup()
    return data


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    """A picture as a row of a dataset has it, undecoded."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def guided(model: DiffusionModel, z_t: Tensor, t: Tensor, condition: Condition, scale: float) -> Tensor:
    """A network's answer under classifier-free guidance."""

    def answer(z_t: Tensor, asked: Asked, condition: Condition) -> Tensor:
        return model.predict(z_t, asked.timesteps, condition)

    return ClassifierFreeGuidance(scale).guide(answer, model)(z_t, Asked(t, 0.6, 0.8), condition)


def told(network: Callable[[Tensor, float], Tensor]) -> Predict:
    """What answers (z_t, what it is told), as sampling steps ask it."""
    return lambda z_t, question: network(z_t, question.model_time)


def sd_scheduler(**overrides: Any) -> DDIMScheduler:
    """Stable Diffusion's schedule."""
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**{**settings, **overrides})


def row_reader(
    label: str | None = None, caption: str | None = None, column: str = "image", **options: Any
) -> RowReader:
    """A reader of these columns; the image's own settings among the reader's."""
    image = {name: options.pop(name) for name in ("channels", "background", "value_range") if name in options}
    others = [*([] if label is None else [LabelColumn(label)]), *([] if caption is None else [CaptionColumn(caption)])]
    return RowReader(ImageColumn(column, **image), tuple(others), **options)


def tiny_unet_settings(channels: int = 2, size: int = 8, **more: Any) -> dict[str, Any]:
    """Of a U-Net that trains a step in milliseconds, as a configuration gives them."""
    settings = {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "block_out_channels": [8],
        "down_block_types": ["DownBlock2D"],
        "mid_block_type": None,
        "up_block_types": ["UpBlock2D"],
        "norm_num_groups": 4,
    }
    return {**settings, **more}


def tiny_unet(channels: int = 2, size: int = 8, **more: Any) -> UNet2DModel:
    """That U-Net, its settings as diffusers has them itself."""
    settings = tiny_unet_settings(channels, size, **more)
    return UNet2DModel(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


def tiny_unet_with_attention(channels: int = 2) -> UNet2DModel:
    """That U-Net with a block in the middle."""
    return tiny_unet(channels, mid_block_type="UNetMidBlock2D")


class GaussianDenoiser(nn.Module):
    """The exact ε-denoiser of data N(mean, variance) with independent entries: ε* = σ (z − α mean)/(α² variance + σ²),
    at fractions of a timestep, too.

    Args:
        mean, variance: shape (C, H, W).
    """

    def __init__(self, mean: Tensor, variance: Tensor, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean)
        self.variance = nn.Parameter(variance)
        self.schedule = schedule

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        alpha, sigma = self.schedule.levels(t, z_t) if not t.is_floating_point() else self._between(t, z_t)
        return sigma * (z_t - alpha * self.mean) / (alpha**2 * self.variance + sigma**2)

    def _between(self, t: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        known = self.schedule.model_time.double().numpy(), self.schedule.log_snr.numpy()
        log_snr = torch.from_numpy(np.interp(t.double().cpu().numpy(), *known))
        log_alpha = self.schedule.log_alpha_at(log_snr)
        levels = log_alpha.exp(), (log_alpha - log_snr / 2).exp()
        return tuple(level.to(z_t).view(-1, 1, 1, 1) for level in levels)


def gaussian_model(
    shape: tuple[int, ...] = (2, 4, 4), dtype: torch.dtype = torch.float64, **scheduler: Any
) -> DiffusionModel:
    """A perfect model of Gaussian data with a power-law spectrum."""
    generator = torch.Generator().manual_seed(0)
    dimension = int(torch.tensor(shape).prod())
    variance = (1 / torch.arange(1, dimension + 1, dtype=torch.float64) + 0.05).view(shape)
    mean = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    schedule = as_schedule(sd_scheduler(**scheduler))
    return DiffusionModel(GaussianDenoiser(mean.to(dtype), variance.to(dtype), schedule), schedule, shape)
