"""Real latents that the probes of a run share, and loaders that are read whole."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ldmprobe import RecordStore
from ldmprobe.callbacks import DDIMProbe, DenoisingProbe
from ldmprobe.callbacks.probe_data import _whole
from tests.callbacks.test_sample_quality import loader
from tests.training.test_latent_diffusion import digits, module, stopped, trainer


@pytest.mark.parametrize("first", [0, 1])
def test_the_reference_is_of_as_many_images_as_the_probe_that_wants_most(tmp_path, first):
    """Whichever probe comes first."""
    few = DDIMProbe(2, num_samples=16, num_steps=4, num_reference=64)
    many = DenoisingProbe(2, num_images=16, num_draws=32, num_reference=256)
    trainer(tmp_path, max_steps=1, callbacks=[few, many] if first == 0 else [many, few]).fit(module(), digits())
    (ddim, *_), (denoising, *_) = (RecordStore(tmp_path).read(name) for name in ("ddim", "denoising"))
    assert ddim.provenance["reference_latents"] == 256
    assert ddim.fingerprints["reference"] == denoising.fingerprints["reference"]


@pytest.mark.parametrize(("changed", "same"), [((1.0,), True), ((0.5,), False), ((1.0, 90), False)])
def test_a_reference_of_loaders_whose_data_have_changed_is_kept_and_told_of(tmp_path, changed, same):
    """However often the generator that shuffles them has been drawn from when the run was stopped."""
    probe = {"num_samples": 16, "num_steps": 2, "num_reference": 64}
    one = stopped(tmp_path, 1, data=loader(1.0), callbacks=[DDIMProbe(2, **probe)])
    on = trainer(tmp_path, max_steps=2, callbacks=[DDIMProbe(2, **probe)])
    told = nullcontext() if same else pytest.warns(UserWarning, match="or others of their images come first")
    with told:
        on.fit(module(), loader(*changed), ckpt_path=one)
    first, *_, last = RecordStore(tmp_path).read("ddim")
    assert first.fingerprints["reference"] == last.fingerprints["reference"]


def test_a_loader_is_read_without_the_sampler_that_gives_each_rank_a_part():
    rows = TensorDataset(torch.arange(10))
    part = DataLoader(rows, batch_size=4, sampler=DistributedSampler(rows, num_replicas=2, rank=0, shuffle=False))
    assert [batch[0].tolist() for batch in part] == [[0, 2, 4, 6], [8]]
    assert [batch[0].tolist() for batch in _whole(part)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    alone = DataLoader(rows, batch_size=4)
    assert _whole(alone) is alone
