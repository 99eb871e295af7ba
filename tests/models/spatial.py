"""Networks that are told pictures and boxes, and the data that they are told of."""

from functools import partial

import lightning as L
import torch
from diffusers import UNet2DConditionModel
from torch import nn

import ldmprobe
from tests.helpers import sd_scheduler, tiny_unet
from tests.training.test_latent_diffusion import trainer as quiet_trainer

SIZE = 16


COLUMNS = [
    ldmprobe.MaskColumn(),
    ldmprobe.MaskColumn("map", "map"),
    ldmprobe.ImageColumn("source", "source"),
    ldmprobe.ObjectsColumn(),
]


BUILTIN = {
    "num_images": 24,
    "size": SIZE,
    "max_shapes": 2,
    "overlap": False,
    "styles": ["filled", "outline", "hatched"],
}


def style() -> ldmprobe.Conditions:
    return ldmprobe.Conditions([ldmprobe.StyleSource(), ldmprobe.ClassConditioning(3)], dropout=0.1)


KINDS = {
    "map": (partial(ldmprobe.SemanticMap, 8), 9, {}),
    "mask": (ldmprobe.Masked, 4, {}),
    "small image": (
        partial(ldmprobe.LowResolution, 4, "blur", noise_levels=20, sampling_level=5),
        3,
        {"num_class_embeds": 21},
    ),
    "sketch": (partial(ldmprobe.Sketch, "mask", gaps=0.2, thickness=2), 2, {}),
    "style": (style, 4, {"num_class_embeds": 4}),
    "layout": (partial(ldmprobe.Layout, 20, 8, 3), 8, {"cross_attention_dim": 8}),
}


def data(**options) -> ldmprobe.ImageData:
    settings = {
        "dataset_kwargs": BUILTIN,
        "batch_size": 8,
        "held_out_fraction": 0.25,
        "label_column": "style",
        "columns": COLUMNS,
        "random_flip": True,
    }
    return ldmprobe.ImageData("builtin:shapes", **{**settings, **options})


def network(channels: int, **more) -> nn.Module:
    torch.manual_seed(0)
    if "cross_attention_dim" not in more:
        return tiny_unet(3, SIZE, in_channels=3 + channels, **more)
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "mid_block_type": None,
    }
    sizes = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2}
    return UNet2DConditionModel(SIZE, 3 + channels, 3, **blocks, **sizes, **more)


class Losses(L.Callback):
    """Keeps losses, and a checkpoint of halfway."""

    def __init__(self, halfway) -> None:
        self.seen: list[float] = []
        self.halfway = halfway

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append(float(outputs["loss"]))
        if trainer.global_step == 2 and not self.halfway.exists():
            trainer.save_checkpoint(self.halfway)


def fit(folder, kind: str, source: ldmprobe.ImageData, ckpt_path=None):
    make, channels, more = KINDS[kind]
    torch.manual_seed(1)
    conditioning = make()
    return fit_told(folder, conditioning, network(channels, **more), source, ckpt_path)


def fit_told(folder, conditioning: ldmprobe.Conditioning, network: nn.Module, source, ckpt_path=None):
    module = ldmprobe.LatentDiffusion(network, scheduler=sd_scheduler(), conditioning=conditioning, ema_decay=0.9)
    losses = Losses(folder / "half.ckpt")
    trainer = quiet_trainer(folder, 4, limit_val_batches=0, callbacks=[losses])
    trainer.fit(module, source, ckpt_path=ckpt_path)
    return module, losses.seen
