"""Moving to a device, there or not."""

import pytest
import torch
from torch import nn

from ldmprobe.models.device import move
from tests.helpers import refused


def test_modules_are_moved_in_place():
    modules = [nn.Linear(2, 3), nn.Linear(3, 1)]
    move(modules, "meta")
    assert {module.weight.device.type for module in modules} == {"meta"}


@pytest.mark.parametrize("device", ["abacus", f"cuda:{torch.cuda.device_count()}"])
def test_a_device_that_is_not_there_is_refused_by_name(device):
    with refused(rf"There is no device '{device}' here \(.*\); write 'cpu'"):
        move([nn.Linear(2, 3)], device)
