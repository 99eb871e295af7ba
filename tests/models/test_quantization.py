"""Quantizations: codes in use, terms with their weights, and a stock VQModel that decodes the same to the last bit."""

import copy
from itertools import product

import pytest
import torch
from diffusers import VQModel
from torch import nn

from ldmprobe.models.quantization import (
    BinarySphericalQuantization,
    FiniteScalarQuantization,
    LookupFreeQuantization,
    MovingAverageQuantization,
    VectorQuantization,
    code_statistics,
    nearest_codes,
)
from tests.helpers import FLOAT32, refused

KINDS = [
    VectorQuantization(),
    MovingAverageQuantization(),
    FiniteScalarQuantization([4, 5, 3]),
    LookupFreeQuantization(6),
    BinarySphericalQuantization(6),
]


def network(codes: int, channels: int) -> VQModel:
    torch.manual_seed(0)
    return VQModel(
        in_channels=1,
        out_channels=1,
        latent_channels=channels,
        num_vq_embeddings=codes,
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )


def alone(tensor):
    return tensor


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def used(model, latents):
    found = code_statistics(nearest_codes(model, latents), model.quantize.n_e)
    return round(float(found["codes_used"]) * model.quantize.n_e), float(found["perplexity"])


@pytest.fixture
def encodings():
    """4,096 unit-normal ones."""
    return torch.randn(64, 4, 8, 8, generator=drawn())


def test_the_start_of_diffusers_leaves_codes_unused_and_a_start_from_data_does_not(encodings):
    model = network(256, 4)
    assert used(model, encodings)[0] < 80
    quantization = VectorQuantization()
    quantization.prepare(model)
    average = nn.Parameter(model.quantize.embedding.weight.detach().clone())
    quantization.begin([model.quantize.embedding.weight, average], encodings, alone, drawn())
    number, perplexity = used(model, encodings)
    assert number == 256
    assert perplexity > 200
    assert torch.equal(average, model.quantize.embedding.weight)
    assert quantization.begun


@pytest.mark.parametrize("kind", [VectorQuantization, MovingAverageQuantization])
def test_a_collapsed_codebook_is_revived(encodings, kind):
    model, quantization = network(256, 4), kind(usage_decay=0.9) if kind is VectorQuantization else kind(decay=0.9)
    quantization.prepare(model)  # and no start from data
    optimizer = torch.optim.Adam([p for p in model.quantize.parameters() if p.requires_grad] or [torch.zeros(1)], 1e-2)
    for step in range(40):
        quantized = quantization(model, encodings, alone)
        if quantized.loss.requires_grad:
            optimizer.zero_grad()
            quantized.loss.backward()
            optimizer.step()
        quantization.after_step([model.quantize.embedding.weight], alone, drawn(step))
    number, perplexity = used(model, encodings)
    assert number > 0.9 * 256
    assert perplexity > 128
    assert quantized.statistics["perplexity"] > 128


def test_moving_averages_are_the_mean_of_what_a_code_was_taken_for_on_all_ranks(encodings):
    whole, parts = (MovingAverageQuantization(decay=0.0, revive_below=0.0) for _ in range(2))
    model, other = network(8, 4), network(8, 4)
    for quantization, each in ((whole, model), (parts, other)):
        quantization.prepare(each)
        quantization.begin([each.quantize.embedding.weight], encodings, alone, drawn())
    codes = nearest_codes(model, encodings).flatten()
    vectors = encodings.movedim(1, -1).flatten(0, 2)
    expected = torch.stack([vectors[codes == k].mean(0) for k in range(8)])
    whole(model, encodings, alone)
    whole.after_step([model.quantize.embedding.weight], alone, drawn())
    torch.testing.assert_close(model.quantize.embedding.weight, nn.Parameter(expected, False), **FLOAT32)

    # Two ranks with half of the batch each: what this one gathers is joined with the other's.
    there = copy.deepcopy(parts)
    there(other, encodings[32:], alone)
    halves = iter([there.seen_counts[None], there.seen_sums[None]])
    parts(other, encodings[:32], lambda t: torch.cat([t, next(halves)]))
    parts.after_step([other.quantize.embedding.weight], alone, drawn())
    torch.testing.assert_close(other.quantize.embedding.weight, model.quantize.embedding.weight, **FLOAT32)


@pytest.mark.parametrize("kind", [VectorQuantization, MovingAverageQuantization])
def test_what_codes_have_seen_is_kept_between_the_batches_of_one_step(encodings, kind):
    quantization, twin = (kind(revive_below=0.0) for _ in range(2))
    model, other = network(8, 4), network(8, 4)
    quantization.prepare(model)
    twin.prepare(other)
    quantization(model, encodings[:16], alone)
    twin.load_state_dict(quantization.state_dict())
    for each, of in ((quantization, model), (twin, other)):
        each(of, encodings[16:], alone)
        expected = torch.bincount(nearest_codes(of, encodings).flatten(), minlength=8) / (64 * 8 * 8 / 8)
        each.after_step([of.quantize.embedding.weight], alone, drawn())
        torch.testing.assert_close(each.usage, 0.99 + 0.01 * expected, **FLOAT32)
        assert not each.seen_counts.any()
        assert not each.seen_sums.any()
    assert torch.equal(other.quantize.embedding.weight, model.quantize.embedding.weight)


def test_the_codebook_has_weight_1_and_the_commitment_beta(encodings):
    model, quantization = network(16, 4), VectorQuantization(commitment=0.1)
    quantization.prepare(model)
    latents = encodings.clone().requires_grad_()
    loss = quantization(model, latents, alone).loss
    loss.backward()
    codes = model.quantize.embedding(nearest_codes(model, encodings)).movedim(-1, 1)
    torch.testing.assert_close(latents.grad, 0.1 * 2 * (latents - codes).detach() / latents.numel(), **FLOAT32)
    error = (latents - codes).square().mean()
    torch.testing.assert_close(loss, 1.1 * error, **FLOAT32)


@pytest.mark.parametrize("levels", [[7, 5, 5, 5], [8, 6, 5], [2, 3]])
def test_finite_scalars_are_the_nearest_codes_of_the_product_grid(levels):
    quantization = FiniteScalarQuantization(levels)
    model = network(int(torch.tensor(levels).prod()), len(levels))
    quantization.prepare(model)
    latents = 1.5 * torch.randn(500, len(levels), 2, 2, generator=drawn())
    steps = (torch.tensor(levels) - 1).view(-1, 1, 1) / 2
    expected = ((latents.clamp(-1, 1) + 1) * steps).round() / steps - 1
    torch.testing.assert_close(quantization(model, latents, alone).latents, expected, **FLOAT32)
    assert used(model, latents)[0] > 0.6 * model.quantize.n_e


def test_channels_that_say_the_same_are_kept_apart():
    quantization = FiniteScalarQuantization([3, 3, 3], pull=0.0, decorrelation=2.0)
    model = network(27, 3)
    quantization.prepare(model)
    z = torch.randn(50, 3, 2, 2, generator=drawn())
    z[:, 1] += 2 * z[:, 0]
    rho = torch.corrcoef(z.transpose(0, 1).flatten(1))
    expected = 2 * (rho[0, 1] ** 2 + rho[0, 2] ** 2 + rho[1, 2] ** 2) / 3
    torch.testing.assert_close(quantization(model, z, alone).loss, expected, **FLOAT32)
    latents = z.clone().requires_grad_()
    quantization(model, latents, alone).loss.backward()
    assert quantization(model, latents - 100 * latents.grad, alone).loss < 0.9 * expected
    one = FiniteScalarQuantization([4], pull=0.0)
    one.prepare(single := network(4, 1))
    assert one(single, z[:, :1], alone).loss == 0


def test_entropies_of_bits_are_those_of_all_codes():
    quantization = LookupFreeQuantization(3, entropy_weight=1.0, diversity=0.0, sharpness=0.3, commitment=0.0)
    model = network(8, 3)
    quantization.prepare(model)
    z = torch.randn(5, 3, 1, 1, generator=drawn())
    corners = torch.tensor(list(product((-1.0, 1.0), repeat=3)))
    q = torch.softmax(-0.3 * torch.cdist(z.flatten(1), corners) ** 2, dim=1)
    expected = torch.special.entr(q).sum(1).mean() / 3
    torch.testing.assert_close(quantization(model, z, alone).loss, expected, **FLOAT32)
    # One bit is set with the same probability everywhere: with the diversity's full weight nothing is left of it.
    quantization.diversity = 1.0
    torch.testing.assert_close(quantization(model, z[:1], alone).loss, torch.tensor(0.0), **FLOAT32)


@pytest.mark.parametrize("kind", [LookupFreeQuantization, BinarySphericalQuantization])
@pytest.mark.parametrize("size", [1e-3, 1.0, 5.0, 1e3])
def test_bits_that_are_certain_have_finite_gradients(kind, size):
    quantization = kind(2, entropy_weight=1.0)
    quantization.prepare(model := network(4, 2))
    # All of one channel and one of the other are far on one side.
    latents = (size * torch.tensor([[1.0, 1e-3], [2.0, -1.0]])).view(2, 2, 1, 1).requires_grad_()
    quantized = quantization(model, latents, alone)
    (quantized.loss + quantized.latents.sum()).backward()
    assert bool(latents.grad.isfinite().all())
    assert bool(quantized.loss.isfinite())


@pytest.mark.parametrize("quantization", KINDS, ids=lambda kind: type(kind).__name__)
def test_a_stock_vqmodel_decodes_the_same_to_the_last_bit(quantization, tmp_path):
    codes = quantization.codes if hasattr(quantization, "codes") else torch.empty(20, 3)
    model = network(*codes.shape)
    quantization.prepare(model)
    images = torch.randn(4, 1, 8, 8, generator=drawn())
    latents = model.encode(images).latents
    quantization.begin([model.quantize.embedding.weight], latents, alone, drawn())
    quantized = quantization(model, latents, alone)
    assert torch.autograd.grad(quantized.latents.sum(), latents, retain_graph=True)[0].abs().sum() > 0
    decoded = model.decode(quantized.latents, force_not_quantize=True).sample
    (decoded.square().mean() + quantized.loss).backward()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path)
    stock = VQModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(stock.decode(stock.encode(images).latents).sample, decoded)


def test_a_codebook_of_another_shape_is_refused_with_the_settings_that_fit():
    with refused(r"num_vq_embeddings: 60.*vq_embed_dim: 3"):
        FiniteScalarQuantization([4, 5, 3]).prepare(network(64, 3))
    with refused(r"num_vq_embeddings: 16.*vq_embed_dim: 4"):
        LookupFreeQuantization(4).prepare(network(16, 3))
    with refused("levels"):
        FiniteScalarQuantization([])
