"""What tests of the first stage train: small autoencoders and discriminators, for a few steps, on drawn shapes."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL, VQModel

from ldmprobe import Adversarial, Autoencoding, ImageData, MovingAverageQuantization, PatchDiscriminator
from ldmprobe.callbacks import ExactResume
from tests.pipelines import autoencoder


def images_data(size: int = 16, batch_size: int = 8) -> ImageData:
    settings = {"size": size, "num_images": 100}
    return ImageData("builtin:shapes", dataset_kwargs=settings, batch_size=batch_size, check_rows=4)


def adversarial(**settings: Any) -> Adversarial:
    return Adversarial(PatchDiscriminator(channels=3, image_size=16, width=8), **settings)


def network(cls: Any = AutoencoderKL, **options: Any) -> Any:
    torch.manual_seed(0)
    sides = {"in_channels": 3, "out_channels": 3}
    return autoencoder(cls, channels=2, levels=2, **sides, **options)


def module(**settings: Any) -> Autoencoding:
    """A module with everything that has a state, the codes included."""
    torch.manual_seed(0)
    defaults = {
        "autoencoder": network(VQModel, num_vq_embeddings=16),
        "quantization": MovingAverageQuantization(revive_below=0.9, decay=0.5),
        "adversarial": adversarial(start=2),
        "ema_decay": 0.9,
        "log_variance": 0.0,
    }
    return Autoencoding(**{**defaults, **settings})


def trainer(max_steps: int, folder: Path | str = ".", callbacks: tuple[Any, ...] = (), **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    every = {"max_steps": max_steps, "max_epochs": -1, "limit_val_batches": 0, "default_root_dir": folder}
    return L.Trainer(callbacks=[ExactResume(), *callbacks], **{**quiet, **every, "devices": 1, **options})


def fit(model: Autoencoding, max_steps: int, **options: Any) -> L.Trainer:
    done = trainer(max_steps, **options)
    done.fit(model, images_data())
    return done
