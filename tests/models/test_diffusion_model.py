"""DiffusionModel: prediction with guidance, and how a LightningModule offers one."""

import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from ldmprobe import ClassConditioning, DiffusionModel, Unconditional
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.samplers import Denoise
from ldmprobe.models.denoiser import as_denoiser
from ldmprobe.models.diffusion_model import diffusion_model_of
from tests.helpers import FLOAT32, gaussian_model, guided, refused, sd_scheduler, tiny_unet

Z, T = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 300, 600, 999])
LABELS = {"class_labels": torch.tensor([0, 1, 2, 0])}
NULL = {"class_labels": torch.tensor([3, 3, 3, 3])}


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    torch.manual_seed(0)
    network = tiny_unet(num_class_embeds=4).eval()
    nn.init.normal_(network.class_embedding.weight, std=3.0)
    return DiffusionModel(network, as_schedule(sd_scheduler()), (2, 8, 8), conditioning=ClassConditioning(3))


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
def test_guidance_goes_from_the_null_prediction_through_the_conditional_one(model, scale):
    denoise = as_denoiser(model.network)
    conditional, null = denoise(Z, T, LABELS), denoise(Z, T, NULL)
    assert not torch.allclose(conditional, null, atol=1e-3)
    found = guided(model, Z, T, LABELS, scale)
    torch.testing.assert_close(found, null + scale * (conditional - null), **FLOAT32)


@torch.no_grad()
def test_scale_1_is_the_conditional_prediction_in_one_pass(model):
    calls = []
    handle = model.network.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(model.predict(Z, T, LABELS), as_denoiser(model.network)(Z, T, LABELS))
    assert len(calls) == 2  # one for each side of the comparison
    handle.remove()


@torch.no_grad()
def test_guidance_of_an_unconditional_model_changes_nothing():
    network = tiny_unet().eval()
    model = DiffusionModel(network, as_schedule(sd_scheduler()), (2, 8, 8))
    assert torch.equal(guided(model, Z, T, {}, 5.0), model.predict(Z, T, {}))


@torch.no_grad()
def test_a_half_precision_network_samples_in_float32(model):
    network = tiny_unet().eval().to(torch.bfloat16)
    half = DiffusionModel(network, as_schedule(sd_scheduler()), (2, 8, 8))
    assert half.predict(Z, T, {}).dtype == torch.float32


def test_what_is_not_given_is_identity_and_unconditional(model):
    plain = DiffusionModel(model.network, model.schedule, (2, 8, 8))
    assert torch.equal(plain.codec.encode(Z), Z)
    assert isinstance(plain.conditioning, Unconditional)
    assert (plain.weights, plain.device) == ("raw", torch.device("cpu"))
    assert plain.modules == [plain.network, plain.codec, plain.conditioning]


def test_a_module_offers_its_model_by_a_method_or_is_refused_with_what_to_write(model):
    class Module(nn.Module):
        def diffusion_model(self):
            return model

    assert diffusion_model_of(Module()) is model
    with refused(r"Linear cannot be probed: give it a method `diffusion_model\(self\)"):
        diffusion_model_of(nn.Linear(1, 1))


@contextmanager
def memory_left(num_bytes: int) -> Iterator[None]:
    """No more than ``num_bytes`` of new address space: allocations beyond fail as they do on a full machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Hungry(nn.Module):
    """Takes 64 MiB a sample, and keeps the batch sizes it could serve."""

    def __init__(self) -> None:
        super().__init__()
        self.each = 2**26
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.served: list[int] = []

    def forward(self, z_t, t, condition):
        torch.empty(len(z_t), self.each, dtype=torch.uint8)
        self.served.append(len(z_t))
        return self.scale * z_t + 1e-3 * t.view(-1, 1, 1, 1) + condition["class_labels"].view(-1, 1, 1, 1)


QUESTION = Denoise(0.6, 0.8, 500.0)


def _hungry() -> tuple[DiffusionModel, torch.Tensor, dict[str, torch.Tensor]]:
    model = DiffusionModel(Hungry(), as_schedule(sd_scheduler()), (1, 2, 2), conditioning=ClassConditioning(100))
    z = torch.randn(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return model, z, {"class_labels": torch.arange(40)}


@torch.no_grad()
def test_a_probe_out_of_memory_halves_its_batch_finds_the_same_and_warns_once():
    model, z, condition = _hungry()
    whole = model.x0_and_epsilon(z, 500.0, 0.6, 0.8, condition)
    assert model.network.served == [40]
    with memory_left(1000 * 2**20), pytest.warns(UserWarning, match=r"Memory ran out .* 40 samples .* went on with 10"):
        halved = model.x0_and_epsilon(z, 500.0, 0.6, 0.8, condition)
    with memory_left(1000 * 2**20), warnings.catch_warnings(action="error"):
        again = model.x0_and_epsilon(z, 500.0, 0.6, 0.8, condition)
    assert model.network.served == [40, *[10] * 8]
    for one, *others in zip(whole, halved, again, strict=True):
        assert all(torch.equal(one, other) for other in others)


@torch.no_grad()
def test_one_sample_that_does_not_fit_is_an_error():
    model, z, condition = _hungry()
    model.network.each = 2**32  # more than other tests may have left free in this process
    with memory_left(20 * 2**20), pytest.raises(RuntimeError, match="can't allocate memory"):
        model.predictor(condition, 40)(z, QUESTION)


@torch.no_grad()
def test_another_error_of_the_network_is_raised_at_once():
    model, z, _ = _hungry()
    with pytest.raises(KeyError, match="class_labels"):
        model.predictor({}, 40)(z, QUESTION)


def test_a_training_pass_is_never_split():
    model, z, condition = _hungry()
    with memory_left(1000 * 2**20), pytest.raises(RuntimeError, match="can't allocate memory"):
        model.predict(z, torch.full((40,), 500.0), condition)
    assert model.network.served == []


def test_a_variance_beside_the_prediction_is_no_second_channel_of_it():
    network = tiny_unet(1, out_channels=2).eval()
    with refused(r"\(4, 1, 8, 8\) with \(4, 2, 8, 8\)"):
        DiffusionModel(network, as_schedule(sd_scheduler()), (1, 8, 8)).predict(Z[:, :1], T, {})


@torch.no_grad()
def test_another_network_put_in_its_place_is_the_one_that_answers(model):
    other = DiffusionModel(model.network, model.schedule, model.latent_shape, conditioning=model.conditioning)
    assert torch.equal(other.predict(Z, T, LABELS), model.predict(Z, T, LABELS))
    other.network = tiny_unet(num_class_embeds=4).eval()
    assert torch.equal(other.predict(Z, T, LABELS), as_denoiser(other.network)(Z, T, LABELS))


def test_a_network_may_be_code_alone():
    class Halved(torch.nn.Module):
        def forward(self, z_t, t, condition):
            return 0.5 * z_t

    model = DiffusionModel(Halved(), gaussian_model().schedule, (1, 4, 4))
    assert model.device.type == "cpu"
    _, epsilon = model.x0_and_epsilon(torch.ones(2, 1, 4, 4), 500.0, 0.6, 0.8, {})
    assert torch.equal(epsilon, torch.full((2, 1, 4, 4), 0.5))
