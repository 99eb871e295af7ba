"""Which strategies shard so that probes can look, and the overlays for several processes."""

from types import SimpleNamespace

import pytest
import yaml
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from ldmprobe.training.sharding import check_strategy, check_trained
from tests.helpers import refused
from tests.test_configs import CONFIGS, build
from tests.training.test_latent_diffusion import module


def test_fsdp_of_the_first_kind_and_tensor_parallelism_are_refused():
    with refused(r"use FSDP2: .*ModelParallelStrategy"):
        check_strategy(FSDPStrategy())
    strategy = ModelParallelStrategy()
    sizes = {"data_parallel": 1, "tensor_parallel": 2}  # Lightning's defaults on one node of two devices
    strategy._device_mesh = {name: SimpleNamespace(size=lambda size=size: size) for name, size in sizes.items()}
    with refused(r"tensor_parallel_size 2 .*data_parallel_size"):
        check_strategy(strategy)


def test_parameters_that_no_rank_would_share_are_refused():
    model = module()
    check_trained(model, model.network)
    model.conditioning.embedding = nn.Embedding(2, 2)
    with refused(r"conditioning\.embedding\.weight is trained, too"):
        check_trained(model, model.network)


@pytest.mark.parametrize("name", ["slurm", "fsdp"])
def test_overlay_changes_nothing_but_the_trainer(tmp_path, name):
    overlay = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert list(overlay) == ["trainer"]
    trainer = build(
        tmp_path, CONFIGS / "gaussian.yaml", CONFIGS / f"{name}.yaml", overrides=["--trainer.accelerator=cpu"]
    ).trainer
    assert trainer.world_size == overlay["trainer"]["devices"] * overlay["trainer"].get("num_nodes", 1)
    check = getattr(trainer.strategy, "_data_parallel_size", trainer.world_size)
    assert check == trainer.world_size
