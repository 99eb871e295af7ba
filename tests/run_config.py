"""Small configurations as YAML has them."""

from pathlib import Path
from typing import Any

import yaml

from tests.helpers import tiny_unet_settings


def component(path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": init_args}


def unet(**settings: Any) -> dict[str, Any]:
    return component("diffusers.UNet2DModel", **tiny_unet_settings(**settings))


def stateful_run(model: dict[str, Any], data: dict[str, Any], **trainer: Any) -> dict[str, Any]:
    """A run with all that has a state: two batches to a step, dropout, a moving average, a learning-rate schedule,
    validation."""
    defaults = {
        "network": unet(size=4, dropout=0.1),
        "optimizer": component("torch.optim.AdamW", lr=1e-3),
        "lr_scheduler": component("torch.optim.lr_scheduler.OneCycleLR", max_lr=1e-2, total_steps=50),
        "ema_decay": 0.9,
        "validation_timesteps": 2,
    }
    images = {"dataset": "builtin:gaussian", "dataset_kwargs": {"num_images": 100, "channels": 2, "size": 4}}
    return {
        "model": component("LatentDiffusion", **{**defaults, **model}),
        "data": component("ImageData", **{**images, "batch_size": 8, **data}),
        "trainer": {"accelerator": "cpu", "accumulate_grad_batches": 2, "limit_val_batches": 1, **trainer},
    }


def written(config: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path
