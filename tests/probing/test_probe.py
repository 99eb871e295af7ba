"""What every probe shares: evaluation that leaves no trace, and work divided over ranks."""

import random
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from ldmprobe.probing.probe import Ranks, evaluating


def mixed_modes() -> nn.Sequential:
    """A module whose parts are in different modes, as when fine-tuning with frozen batch norms."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)), nn.Linear(2, 2))
    network.train()
    network[1][1].eval()
    network[2].eval()
    return network


def flags(network: nn.Module) -> list[bool]:
    return [module.training for module in network.modules()]


GENERATORS: list[Callable[[], object]] = [
    lambda: random.random(),
    lambda: float(np.random.rand()),
    lambda: float(torch.rand(())),
]


def draw_and_reseed() -> None:
    for draw in GENERATORS:
        draw()
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


def test_inside_all_modules_evaluate_without_gradients():
    network, other = mixed_modes(), nn.Dropout()
    with evaluating([network, other]):
        assert not any(flags(network) + flags(other))
        assert not network[0](torch.ones(1, 2)).requires_grad


def test_inside_there_is_no_autocast():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with evaluating([]):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


@pytest.mark.parametrize("error", [None, KeyError])
def test_modes_return_module_by_module_also_after_an_exception(error):
    network = mixed_modes()
    before = flags(network)
    assert len(set(before)) == 2
    with pytest.raises(error) if error else nullcontext(), evaluating([network, network]):
        if error:
            raise error
    assert flags(network) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("draw", GENERATORS, ids=["python", "numpy", "torch"])
@pytest.mark.parametrize("fails", [False, True])
def test_random_state_returns_also_after_an_exception(draw: Callable[[], object], fails: bool):
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    draw()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    try:
        with evaluating([]):
            draw_and_reseed()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert draw() == expected


@pytest.mark.parametrize(("num_samples", "world_size"), [(10, 1), (10, 2), (11, 4), (2, 3)])
def test_shares_of_all_ranks_are_each_sample_once(num_samples: int, world_size: int):
    shares = [Ranks(rank, world_size).share(num_samples) for rank in range(world_size)]
    assert sorted(torch.cat(shares).tolist()) == list(range(num_samples))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_rows_gathered_on_two_ranks_add_up_to_those_of_one_process():
    rows = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    parts = []
    for rank in range(2):
        ranks = Ranks(rank, 2)
        ids = ranks.share(11)
        parts.append(ranks.gather_rows(rows[ids], ids, 11))
    alone = Ranks().gather_rows(rows, Ranks().share(11), 11)
    assert alone.dtype == torch.float64
    assert torch.equal(parts[0] + parts[1], alone)
    assert torch.equal(alone, rows.double())
