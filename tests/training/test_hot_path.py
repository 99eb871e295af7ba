"""A training step fetches nothing from the device, but for pixels and labels of the first batch of a fit. It runs here on torch's "meta" device, from which nothing can be
fetched: `.item()`, `.cpu()`, `bool(tensor)` and indexing a host tensor by a device tensor all raise there."""

from contextlib import suppress

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader, IterableDataset

from ldmprobe.callbacks import NonFinite, TrainingLoss
from ldmprobe.diffusion.weighting import LearnedUncertainty, LossWeighting, MinSNR
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import ClassConditioning
from ldmprobe.pretrained.lora import LoRA
from ldmprobe.training.finetuning import FinetunedDiffusion
from ldmprobe.training.latent_diffusion import LatentDiffusion
from ldmprobe.types import Batch
from tests.helpers import tiny_unet
from tests.pipelines import saved


class _Anywhere(CPUAccelerator):
    def setup_device(self, device):
        """Take any device."""


class _OnMeta(SingleDeviceStrategy):
    def __init__(self):
        super().__init__(torch.device("meta"), accelerator=_Anywhere())

    def teardown(self):
        """Leave the module where it is."""


class _Batches(IterableDataset):
    def __init__(self, image_shape):
        self.image_shape = image_shape

    def __iter__(self):
        while True:
            yield {"image": torch.zeros(self.image_shape), "label": torch.tensor(1), "index": torch.tensor(0)}


class _Watch(L.Callback):
    """Counts batches that have passed every hook, and hands them to TrainingLoss, whose probes are no part of a
    step."""

    def __init__(self):
        self.batches, self.training_loss = 0, TrainingLoss(every_n_steps=10**6)

    def on_train_batch_end(self, *arguments):
        self.training_loss.on_train_batch_end(*arguments)
        self.batches += 1


@pytest.fixture(autouse=True)
def looked_at(monkeypatch) -> list[Batch]:
    """The batches whose values were looked at; here nobody can."""
    batches: list[Batch] = []
    monkeypatch.setattr(LatentDiffusion, "look_at", lambda self, batch: batches.append(batch))
    return batches


def batches_without_a_copy(module, image_shape, accumulate=1):
    watch = _Watch()
    trainer = L.Trainer(
        strategy=_OnMeta(), max_steps=3, callbacks=[NonFinite(every_n_steps=1000), watch], gradient_clip_val=1.0,
        accumulate_grad_batches=accumulate, logger=False, log_every_n_steps=0, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    # Once training has ended, NonFinite and Lightning fetch what they have gathered.
    with suppress(NotImplementedError, RuntimeError):
        trainer.fit(module, DataLoader(_Batches(image_shape), batch_size=4))
    return watch.batches


def module(weighting: LossWeighting, cls=LatentDiffusion):
    network = tiny_unet(num_class_embeds=11)
    conditioning = ClassConditioning(10, dropout=0.1)
    return cls(
        network, LatentCodec("builtin:digits"), conditioning=conditioning, weighting=weighting, latent_shape=(2, 8, 8)
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_of_latent_diffusion_waits_for_nothing(accumulate, looked_at):
    assert batches_without_a_copy(module(MinSNR()), (1, 32, 32), accumulate) == 3 * accumulate
    assert len(looked_at) == 1


def test_a_step_with_a_learned_weighting_waits_for_nothing():
    assert batches_without_a_copy(module(LearnedUncertainty()), (1, 32, 32)) == 3


def test_a_step_of_a_lora_finetune_waits_for_nothing():
    finetune = FinetunedDiffusion(str(saved("DiTPipeline")), lora=LoRA(rank=2))
    assert batches_without_a_copy(finetune, (3, 16, 16)) == 3


def test_a_step_that_fetches_a_number_is_caught():
    class Fetching(LatentDiffusion):
        def training_step(self, batch, batch_idx):
            outputs = super().training_step(batch, batch_idx)
            float(outputs["loss"].detach())
            return outputs

    assert batches_without_a_copy(module(MinSNR(), Fetching), (1, 32, 32)) == 0
