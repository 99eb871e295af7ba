"""Killed at random moments, again and again, and gone on with each time: the long form, for docs/RELIABILITY.md."""

import random
import signal

import pytest
import torch

from tests.training.killing import (
    arguments,
    differences,
    first_stage_config,
    run,
    signal_after,
    signal_at_call,
    write_config,
)

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


@pytest.mark.reliability
def test_a_first_stage_killed_in_a_step_and_in_a_probe_ends_like_one_that_was_not(tmp_path):
    config = first_stage_config(tmp_path)
    assert run(arguments(config, tmp_path / "whole"), tmp_path / "whole.txt") == 0
    step, probe = (
        "training.autoencoding:Autoencoding.training_step",
        "callbacks.reconstruction_probe:ReconstructionProbe.probe",
    )
    points = [(f"ldmprobe.{step}", 6), (f"ldmprobe.{step}", 4), (f"ldmprobe.{probe}", 1)]
    folder, output = tmp_path / "run", tmp_path / "run.txt"
    codes = [run(arguments(config, folder), output, signal_at_call, *point) for point in points]
    codes.append(run(arguments(config, folder), output))
    assert codes == [-signal.SIGKILL] * 3 + [0], output.read_text()
    assert differences(tmp_path / "whole", folder) == []
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert bool((saved["quantization.usage"] == 1).any())  # revived, by draws that go on, too
