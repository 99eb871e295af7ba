"""Numbers that make no sense are told with the name that they were given by."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from ldmprobe.data.builtin import load_builtin
from ldmprobe.data.images import ImageData
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.errors import check_numbers
from ldmprobe.training.rates import built, check_rates
from tests.helpers import refused


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, 11, 0.5])
def test_only_numbers_in_range_pass(value):
    check_numbers("It", 1, 10, low=1, high=10, between=2.5, none=None)
    with refused(rf"^It got number {value}; expected at least 1 and at most 10\.$"):
        check_numbers("It", 1, 10, fine=2, number=value)


@pytest.mark.parametrize(
    "name",
    ["num_workers", "seed", "check_rows", "image_size", "held_out_rows", "shuffle_buffer", "num_classes", "batch_size"],
)
def test_data(name):
    with refused(f"ImageData got {name} -1"):
        ImageData("builtin:digits", **{name: -1})


@pytest.mark.parametrize("kwargs", [{"num_images": 10**12}, {"num_images": 10**6, "size": 10**4}, {"size": 0}])
def test_built_in_data_that_no_memory_holds(kwargs):
    for name in ("gaussian", "shapes"):
        with refused(next(iter(kwargs))):
            load_builtin(name, **kwargs)


@pytest.mark.parametrize("settings", [{"num_train_timesteps": 1}, {"beta_end": -0.02}, {"beta_start": math.nan}])
def test_noise_levels(settings):
    with refused(next(iter(settings))):
        as_schedule(DDIMScheduler(**settings))


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("AdamW", {"lr": -1.0}, "-1.0"),
        ("AdamW", {"lr": 1e-3, "betas": (0.9, 2.0)}, "2.0"),
        ("SGD", {"lr": math.nan}, "lr to nan"),  # which torch takes
        ("SGD", {"lr": math.inf}, "lr to inf"),
        ("SGD", {"lr": 1e-3, "momentum": math.nan}, "momentum to nan"),
        ("SGD", {"lr": torch.tensor(math.nan)}, "lr to nan"),
    ],
)
def test_optimizers(kind, settings, told):
    def make():
        return getattr(torch.optim, kind)([torch.nn.Parameter(torch.zeros(1))], **settings)

    with refused(f"`optimizer`.*{told}"):
        check_rates("optimizer", built("optimizer", make))
