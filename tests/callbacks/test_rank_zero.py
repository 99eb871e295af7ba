"""What only rank zero can know is told to all ranks, its errors too."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.errors import ConfigurationError


def on_both_ranks(make):
    """What ``from_rank_zero`` does on two ranks: threads that wait for each other at a broadcast."""
    barrier, sent = threading.Barrier(2, timeout=30), []

    def run(rank):
        def broadcast(value):
            if rank == 0:
                sent.append(value)
            barrier.wait()
            return sent[0]

        trainer = SimpleNamespace(is_global_zero=rank == 0, world_size=2, strategy=SimpleNamespace(broadcast=broadcast))
        try:
            return from_rank_zero(trainer, lambda: make(rank))
        except Exception as error:  # noqa: BLE001 (looked at by the test)
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def test_every_rank_gets_what_rank_zero_has():
    assert on_both_ranks(lambda rank: f"rank {rank}") == ["rank 0", "rank 0"]


@pytest.mark.parametrize(
    ("error", "there"),
    [
        (ConfigurationError("There are no images: none."), ConfigurationError("There are no images: none.")),
        (OSError("disk gone"), RuntimeError("On rank zero: OSError: disk gone")),
    ],
)
def test_an_error_is_raised_on_every_rank_and_stays_one_that_a_user_can_put_right(error, there):
    def make(rank):
        raise error

    raised = on_both_ranks(make)
    assert [(type(each), str(each)) for each in raised] == [(type(each), str(each)) for each in (error, there)]
