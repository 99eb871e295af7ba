"""Killed at random moments, again and again, and gone on with each time: the long form, for docs/RELIABILITY.md."""

import random
import signal

import pytest

from tests.training.killing import arguments, differences, run, signal_after, write_config

KILLS = 24
KILLS_A_RUN = 6


@pytest.mark.reliability
@pytest.mark.parametrize("seed", range(KILLS // KILLS_A_RUN))
def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(tmp_path, seed):
    config = write_config(tmp_path, max_steps=48, num_workers=seed % 2)
    assert run(arguments(config, tmp_path / "whole"), tmp_path / "whole.txt") == 0
    draw = random.Random(seed)
    moments, codes = [], []
    while codes.count(-signal.SIGKILL) < KILLS_A_RUN:
        moments.append(round(draw.uniform(0, 1.5), 3))
        codes.append(run(arguments(config, tmp_path / "run"), tmp_path / "run.txt", signal_after, moments[-1]))
        assert codes[-1] in (-signal.SIGKILL, 0), (tmp_path / "run.txt").read_text()
        if codes[-1] == 0:
            break
    if codes[-1] != 0:
        assert run(arguments(config, tmp_path / "run"), tmp_path / "run.txt") == 0
    found = differences(tmp_path / "whole", tmp_path / "run")
    kills = codes.count(-signal.SIGKILL)
    print(f"killed {kills} times (seed {seed}, seconds into training {moments}): {len(found)} differences")
    assert found == []
