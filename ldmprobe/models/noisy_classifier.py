"""A classifier of noisy latents, and the whole that reads class probabilities off it: what guides a model that was
never told a class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

from ldmprobe.diffusion.full_precision import without_autocast
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.digest import fingerprint, weights_fingerprint
from ldmprobe.types import Component, PlainValues

CLASSIFIER = "classifier"
"""The ``kind`` in a checkpoint's spec."""
_MOST = 20.0  # of |log-SNR|: beyond it nothing changes
_UNIT = 50.0  # of the embedding, whose shortest period is 2π, in a log-SNR


class NoisyClassifier(nn.Module):
    r"""A classifier p(y | z) at any noise level: the lower half of diffusers' UNet2DModel, its last activations
    averaged over places, and a linear layer (as Dhariwal & Nichol, 2021, arXiv:2105.05233, section 4, who pool by
    attention).

    It is told the log-SNR, and sees :math:`z_t / \sqrt{\alpha^2 + \sigma^2}`, which has the same distribution in every
    noise process at one log-SNR: a classifier guides any model of the same latents. Nothing in it mixes samples.

    Args:
        channels: of the latents.
        num_classes: K.
        block_out_channels, down_block_types, layers_per_block, attention_head_dim, norm_num_groups: as UNet2DModel's.

    Raises:
        ConfigurationError: fewer than two classes, or blocks that diffusers does not build.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        block_out_channels: tuple[int, ...] = (32, 64),
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D"),
        layers_per_block: int = 1,
        attention_head_dim: int = 32,
        norm_num_groups: int = 16,
    ) -> None:
        super().__init__()
        check_numbers("NoisyClassifier", 1, channels=channels, layers_per_block=layers_per_block)
        check_numbers("NoisyClassifier", 2, num_classes=num_classes)
        shape = {
            "block_out_channels": tuple(block_out_channels),
            "down_block_types": tuple(down_block_types),
            "layers_per_block": layers_per_block,
            "attention_head_dim": attention_head_dim,
            "norm_num_groups": norm_num_groups,
        }
        self.config: PlainValues = {"channels": channels, "num_classes": num_classes, **shape}
        attends = [c for c, kind in zip(block_out_channels, down_block_types, strict=False) if "Attn" in kind]
        for width in (*attends, block_out_channels[-1]):
            if attention_head_dim < 1 or width % attention_head_dim:
                raise ConfigurationError(
                    f"NoisyClassifier has a block of {width} channels with attention, whose attention_head_dim "
                    f"{attention_head_dim} does not divide them; set one that does."
                )
        try:
            whole: Component = UNet2DModel(
                in_channels=channels,
                out_channels=channels,
                up_block_types=("UpBlock2D",) * len(block_out_channels),
                **shape,
            )
        except (ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:
            raise ConfigurationError(f"NoisyClassifier has blocks that diffusers does not build: {error}") from error
        self.time_proj, self.time_embedding = whole.time_proj, whole.time_embedding
        self.conv_in, self.down_blocks, self.mid_block = whole.conv_in, whole.down_blocks, whole.mid_block
        self.norm = nn.GroupNorm(norm_num_groups, block_out_channels[-1])
        self.head = nn.Linear(block_out_channels[-1], num_classes)

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """Latents of variance about 1 (N, C, h, w), and their log-SNR (N,) → logits (N, K)."""
        told = self.time_embedding(self.time_proj(_UNIT * log_snr.clamp(-_MOST, _MOST)).to(z.dtype))
        hidden = self.conv_in(z)
        for block in self.down_blocks:
            hidden, _ = block(hidden, told)
        hidden = self.mid_block(hidden, told)
        logits: Tensor = self.head(F.silu(self.norm(hidden)).mean((2, 3)))
        return logits


@dataclass
class ClassifierModel:
    """A classifier of noisy latents as a guidance and a probe use it.

    Attributes:
        network: such as a NoisyClassifier: (z (N, C, h, w) of variance about 1, log-SNR (N,)) → logits (N, K).
        num_classes: K.
        codec: the description of the codec whose latents it knows; empty if it is to be trusted.
        weights: "ema" or "raw".
        trained_steps: optimizer steps.
    """

    network: nn.Module
    num_classes: int
    codec: PlainValues
    weights: str = "raw"
    trained_steps: int = 0

    def log_probabilities(self, z_t: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return ln p(y | z_t) (N, K) at one noise level, with gradients, in float32 at least."""
        scale = math.hypot(alpha, sigma)
        log_snr = (
            2 * (math.log(alpha) - math.log(sigma)) if min(alpha, sigma) > 0 else math.copysign(_MOST, alpha - sigma)
        )
        with without_autocast(z_t.device):
            told = torch.full((len(z_t),), log_snr, device=z_t.device)
            logits = self.network(z_t.float() / scale, told)
            return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)

    @property
    def device(self) -> torch.device:
        """Return where it is."""
        return next(self.network.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """Return what tells its weights from others: those that it has when it is first asked."""
        return fingerprint(weights_fingerprint(self.network.state_dict().values()))

    @classmethod
    def load(cls, path: str | Path) -> ClassifierModel:
        """Read a checkpoint of ``NoisyClassification``, without pickle, with its EMA weights if it has any.

        Raises:
            ConfigurationError: it cannot be read, or is of something else.
        """
        try:
            content = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many kinds, all meaning "not a readable checkpoint"
            raise ConfigurationError(f"{path} is not a readable checkpoint: {type(error).__name__}: {error}") from error
        spec = content.get("ldmprobe") if isinstance(content, dict) else None
        if not isinstance(spec, dict) or spec.get("kind") != CLASSIFIER:
            raise ConfigurationError(
                f"{path} holds no classifier of noisy latents; expected a checkpoint of ldmprobe.NoisyClassification "
                "(configs/tasks/classifier.yaml)."
            )
        prefix = "ema.network." if spec["ema"] else "classifier."
        network = NoisyClassifier(**spec["classifier"])
        state = {k.removeprefix(prefix): value for k, value in content["state_dict"].items() if k.startswith(prefix)}
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ConfigurationError(f"{path} does not hold the classifier that it describes: {error}") from error
        network.requires_grad_(False).eval()
        weights = "ema" if spec["ema"] else "raw"
        return cls(network, network.config["num_classes"], spec["codec"], weights, int(content["global_step"]))
