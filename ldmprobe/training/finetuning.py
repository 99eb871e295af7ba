"""FinetunedDiffusion: the LightningModule that goes on training a pretrained latent diffusion model, whole or by
LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.strategies import ModelParallelStrategy

from ldmprobe.errors import ConfigurationError
from ldmprobe.lightning_private import datamodule_of
from ldmprobe.models.autoencoder import has_posterior
from ldmprobe.pretrained.finetune import base_fingerprint, frozen_keys, prepare_for_finetuning_
from ldmprobe.pretrained.lora import LoRA
from ldmprobe.pretrained.source import Precision, Source
from ldmprobe.training.checkpoint.load import load_model
from ldmprobe.training.checkpoint.spec import finetune_spec
from ldmprobe.training.latent_diffusion import LatentDiffusion
from ldmprobe.training.sharding import is_sharded
from ldmprobe.types import Batch, PlainValues, StateDict


@runtime_checkable
class _HasClasses(Protocol):
    num_classes: int | None


class FinetunedDiffusion(LatentDiffusion):
    """Finetunes a diffusers pipeline or a checkpoint: network, codec, noise schedule and conditioning are its own.

    A checkpoint leaves out what is not trained (autoencoder, frozen text encoders; with LoRA all but its updates) and
    says where that is: going on, probing, sampling and exporting take it from there, and refuse other weights than it
    was trained on.

    Args:
        pretrained: folder or hub id of a diffusers pipeline of any family in ``FAMILIES``, or a
            checkpoint of ldmprobe (``….ckpt``), of which it takes the averaged weights. A run goes on with the same
            weights elsewhere, too.
        revision: branch, tag or commit on the hub.
        variant: of the weights, such as "fp16".
        local_files_only: never ask the hub, only its cache.
        text_precision: of frozen text encoders of a pipeline; half of it is half their memory. (A checkpoint in
            ``pretrained`` has its own.)
        prompts: of probes and samples of a text-to-image model; default: the checkpoint's, and none ("") of a pipeline.
        dropout: share of training samples whose caption or class becomes the null condition, for classifier-free
            guidance.
        lora: train low-rank updates only; default: train the whole network.
        train_text_encoder: train the text encoders, too; with ``lora``, by updates of the attention of those that
            diffusers has a format for (CLIP, not the T5 of Stable Diffusion 3), or where there are none of all.
        scheduler: settings of the noise schedule in the place of the pipeline's, by their names in diffusers; the
            others, such as its betas, stay. ``{rescale_betas_zero_snr: true, prediction_type: v_prediction,
            timestep_spacing: trailing}`` trains with zero terminal SNR (``NoiseSchedule.with_settings``).
        sample_posterior: train on latents drawn from the posterior of an AutoencoderKL, as the finetuning scripts of
            diffusers do, instead of its mode. A checkpoint does not say how it was trained, nor goes on so by itself.

    Raises:
        ConfigurationError: before training: nothing loadable there, a LoRA target that is not in the network, data that
            does not fit.
    """

    def __init__(
        self,
        pretrained: str,
        revision: str | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
        text_precision: Precision = "float32",
        prompts: Sequence[str] | None = None,
        dropout: float = 0.1,
        lora: LoRA | None = None,
        train_text_encoder: bool = False,
        scheduler: dict[str, bool | int | float | str | list[float] | None] | None = None,
        sample_posterior: bool = False,
        **kwargs: Any,
    ) -> None:
        base = Source(pretrained, revision, variant, local_files_only, text_precision)
        model = load_model(base, device="cpu")
        base_weights = base_fingerprint(model)
        prepare_for_finetuning_(model, prompts, dropout, lora, train_text_encoder)
        if sample_posterior and not has_posterior(model.codec.meta_module):
            kind = type(model.codec.meta_module).__name__
            raise ConfigurationError(
                f"{pretrained} has no posterior to draw from ({kind}); leave out `sample_posterior`."
            )
        model.codec.sample_posterior = sample_posterior
        super().__init__(
            network=model.network,
            codec=model.codec,
            scheduler=model.schedule.with_settings(**scheduler) if scheduler else model.schedule,
            conditioning=model.conditioning,
            **kwargs,
        )
        self.base, self.base_weights, self.lora, self.train_text_encoder = base, base_weights, lora, train_text_encoder
        self._in_base = set(self.conditioning.state_dict())  # to which held-out rows of its own data come

    def setup(self, stage: str) -> None:
        if self.lora is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ConfigurationError(
                "LoRA does not go with ModelParallelStrategy, which would shard the frozen weights twice, for network "
                "and average; use `strategy: ddp`: what is frozen needs no gradients and no optimizer."
            )
        data = datamodule_of(self.trainer)
        self.conditioning.check_finetune(data.num_classes if isinstance(data, _HasClasses) else None, self.base.name)
        super().setup(stage)

    def _look_at_scale(self, batches: Iterable[Batch]) -> None:
        """The network has learned the scale that it comes with."""

    def model_spec(self) -> PlainValues:
        model = self.diffusion_model(self.network)
        return finetune_spec(model, self.base, self.base_weights, self.lora, self.train_text_encoder)

    def on_save_checkpoint(self, checkpoint: StateDict) -> None:
        super().on_save_checkpoint(checkpoint)
        left_out = self._of_the_base()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in left_out}

    def on_load_checkpoint(self, checkpoint: StateDict) -> None:
        super().on_load_checkpoint(checkpoint)
        if left_out := self._of_the_base():
            own = self.state_dict()
            checkpoint["state_dict"] = {name: own[name] for name in left_out} | checkpoint["state_dict"]

    def _of_the_base(self) -> set[str]:
        """Return what of the state dict stays as it is in the base, and can be left out; not of one that is sharded,
        which is loaded otherwise.
        """
        if is_sharded(self.network):
            return set()
        network = {f"network.{name}" for name in frozen_keys(self.network)}
        told = {f"conditioning.{name}" for name in frozen_keys(self.conditioning) & self._in_base}
        averaged = {f"ema.{name}" for name in network} if self.ema is not None else set()
        return network | averaged | told
