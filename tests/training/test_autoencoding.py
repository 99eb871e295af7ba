"""Autoencoding: what is trained, by which gradients; what is saved, resumed and exported."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, AutoencoderTiny, VQModel
from lightning.pytorch.callbacks import ModelCheckpoint

from ldmprobe import (
    Adversarial,
    Equivariance,
    LatentCodec,
    MovingAverageQuantization,
    PatchDiscriminator,
    PerceptualLoss,
    VectorQuantization,
    load_autoencoder,
    load_model,
)
from ldmprobe.cli import main
from ldmprobe.io.digest import weights_fingerprint
from ldmprobe.models.autoencoder import images_of, last_layer, latents_of, posterior_of
from tests.autoencoding import adversarial, fit, images_data, module, network, trainer
from tests.helpers import refused, refuses
from tests.processes import finish, start_ranks

SGD = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.05)}


def state_of(path: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(path, weights_only=True)
    moments = saved["optimizer_states"][0]["state"]
    named = {f"{i}.{name}": value for i, state in moments.items() for name, value in state.items()}
    return {**saved["state_dict"], **{name: torch.as_tensor(value) for name, value in named.items()}}


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["group", "spectral", "none"])
def test_one_pass_backward_gives_the_gradients_of_two_separate_ones(norm):
    torch.manual_seed(0)
    first_stage = network(VQModel, num_vq_embeddings=16)
    discriminator = PatchDiscriminator(channels=3, image_size=16, width=8, norm=norm).eval()
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    last = last_layer(first_stage)

    def decoded():
        return images_of(first_stage, latents_of(first_stage, images))

    def gradients():
        found = [p.grad for p in (*first_stage.parameters(), *discriminator.parameters())]
        first_stage.zero_grad()
        discriminator.zero_grad()
        return found

    x = decoded()
    terms = Adversarial(discriminator, weight=0.5)(images, x, (images - x).abs().mean(), last, 0, lambda tensor: tensor)
    ((images - x).abs().mean() + terms.generator + terms.discriminator).backward()
    joint = gradients()

    x = decoded()
    logits = discriminator(x).mean()
    norms = [
        torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in ((images - x).abs().mean(), logits)
    ]
    factor = norms[0] / (norms[1] + 1e-4)
    assert terms.statistics["adaptive_weight"] == factor
    ((images - x).abs().mean() - 0.5 * factor * logits).backward()
    of_autoencoder = gradients()[: len(list(first_stage.parameters()))]

    real, fake = discriminator(torch.cat([images, decoded().detach()])).chunk(2)
    (0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())).backward()
    assert all(parameter.grad is None for parameter in first_stage.parameters())
    of_discriminator = gradients()[len(of_autoencoder) :]
    for one, other in zip(joint, [*of_autoencoder, *of_discriminator], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_before_its_start_the_discriminator_learns_and_does_not_count():
    images = torch.rand(2, 3, 16, 16)
    decoded = torch.zeros_like(images).requires_grad_()
    parameter = torch.nn.Parameter(torch.zeros(1))
    loss = adversarial(start=3)(images, decoded, decoded.mean(), parameter, 2, lambda tensor: tensor)
    assert float(loss.generator) == 0
    assert loss.discriminator.requires_grad
    assert decoded.grad is None


def test_equivariant_images_and_latents_are_transformed_alike():
    torch.manual_seed(3)
    images = torch.rand(2, 3, 32, 32)
    latents = F.avg_pool2d(images, 2)  # of an autoencoder that scales and rotates with its images
    seen = set()
    for _ in range(20):
        z, x = Equivariance(scales=(0.5, 0.5), probability=0.5)(latents, images)
        seen.add(x.shape[-1])
        assert x.shape[-1] == 2 * z.shape[-1]
        torch.testing.assert_close(F.avg_pool2d(x, 2), z, rtol=0, atol=0.2)
        assert math.isclose(float(x.mean()), float(images.mean()), abs_tol=0.01)
    assert seen == {16, 32}


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four steps of an AutoencoderKL with all losses; the module, its checkpoint, and weights from before."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = module(
        autoencoder=network(),
        quantization=None,
        perceptual=PerceptualLoss("builtin:cifar10", weight=0.1),
        equivariance=Equivariance(probability=0.5),
        optimizer=lambda groups: torch.optim.Adam(groups, lr=1e-2),
        ema_decay=0.5,
        adversarial=adversarial(start=9),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = weights_fingerprint(model.reconstruction.perceptual.network.state_dict().values())
    checkpoint = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    # Two batches to a step, and a start that never comes: only what the discriminator learns itself moves it.
    done = fit(model, 10, callbacks=(checkpoint,), limit_val_batches=2, val_check_interval=2, gradient_clip_val=1.0)
    return model, folder / "step=8.ckpt", before, features, done


def test_everything_that_is_to_learn_has_moved_and_nothing_else(run):
    model, _, before, features, done = run
    after = model.state_dict()
    assert done.global_step == 10
    assert {"val/psnr", "val/kl", "train/perceptual", "train/logits_real"} <= done.callback_metrics.keys()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert "reconstruction.log_variance" in trained
    assert any(name.startswith("adversarial.discriminator.") for name in trained)
    assert [name for name in trained if torch.equal(before[name], after[name])] == []
    optimized = {id(parameter) for group in done.optimizers[0].param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    perceptual = model.reconstruction.perceptual
    assert weights_fingerprint(perceptual.network.state_dict().values()) == features
    assert not any(part.training for part in perceptual.train().network.modules())
    assert not any("perceptual" in name for name in after)


@pytest.mark.parametrize("per_channel", [False, True])
def test_an_exported_autoencoder_is_the_average_with_latents_of_mean_0_and_variance_1(run, tmp_path, per_channel):
    _, checkpoint, *_ = run
    assert main(["export", str(checkpoint), str(tmp_path / "out"), *(["--per-channel"] if per_channel else [])]) == 0
    codec, data = LatentCodec(str(tmp_path / "out")), images_data()
    data.setup()
    images = torch.cat([batch["image"] for batch in data.reference_batches(1024)])
    latents = codec.encode(images)
    assert codec.scale_known
    axes = (0, 2, 3) if per_channel else (0, 1, 2, 3)
    assert float(latents.mean(axes).abs().max()) < 0.02
    assert float((latents.var(axes, correction=0) - 1).abs().max()) < 0.03
    saved = load_autoencoder(checkpoint, "cpu")
    assert (saved.weights, saved.trained_steps, saved.latent_shape) == ("ema", 8, (2, 8, 8))
    torch.testing.assert_close(codec.decode(latents), saved.decode(saved.encode(images)), rtol=1e-4, atol=1e-4)
    card = (tmp_path / "out/README.md").read_text()
    assert "8, exponential moving average" in card
    assert "measured on" in card


@pytest.mark.parametrize("cls", [VQModel, AutoencoderTiny, AutoencoderDC], ids=lambda cls: cls.__name__)
def test_other_autoencoders_are_trained_and_exported_with_their_scale(cls, tmp_path):
    model = module(
        autoencoder=network(cls, **({"num_vq_embeddings": 16} if cls is VQModel else {})),
        quantization=None,
        adversarial=None,
    )
    fit(model, 2, callbacks=(ModelCheckpoint(tmp_path, filename="one", every_n_train_steps=2),))
    assert main(["export", str(tmp_path / "one.ckpt"), str(tmp_path / "out")]) == 0
    codec, data = LatentCodec(str(tmp_path / "out")), images_data()
    data.setup()
    latents = codec.encode(torch.cat([batch["image"] for batch in data.reference_batches(1024)]))
    assert abs(float(latents.mean())) < 0.02
    assert abs(float(latents.var()) - 1) < 0.03


def test_the_two_stages_are_told_apart_by_name(run, tmp_path, capsys):
    _, checkpoint, *_ = run
    with refused(r"holds an autoencoder.*`ldmprobe export`.*codec\.autoencoder"):
        load_model(str(checkpoint), "cpu")
    refuses(capsys, ["sample", str(checkpoint), "--out", str(tmp_path / "x.png")], "holds an autoencoder")
    network().save_pretrained(tmp_path / "folder")
    with refused("holds an autoencoder"):
        load_model(str(tmp_path / "folder"), "cpu")


def test_the_kl_is_in_nats_per_image_entry():
    model, images = module(autoencoder=network(), quantization=None, kl_weight=0.5), torch.rand(2, 3, 16, 16)
    _, term, parts = model._encode(images)
    posterior = posterior_of(model.autoencoder, images)
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum() / (2 * 3 * 16 * 16)
    torch.testing.assert_close(parts["kl"], kl.detach())
    torch.testing.assert_close(term, 0.5 * kl)


def test_a_trained_decoder_leaves_latents_as_they_are():
    model = module(quantization=None, adversarial=adversarial(), train="decoder", ema_decay=None, **SGD)
    before = {name: value.clone() for name, value in model.autoencoder.state_dict().items()}
    images = torch.rand(2, 3, 16, 16)
    model.autoencoder.eval()
    latents = latents_of(model.autoencoder, images)
    fit(model, 2)
    assert torch.equal(latents_of(model.autoencoder.eval(), images), latents)
    changed = [name for name, value in model.autoencoder.state_dict().items() if not torch.equal(value, before[name])]
    assert {name.split(".")[0] for name in changed} == {"decoder", "post_quant_conv"}


@pytest.mark.parametrize(
    "kind", [lambda: VectorQuantization(revive_below=0), lambda: MovingAverageQuantization(revive_below=0, decay=1.0)]
)
def test_codes_that_were_trained_are_gone_on_with_wherever_they_come_from(kind, tmp_path):
    trained = network(VQModel, num_vq_embeddings=16)
    torch.nn.init.normal_(trained.quantize.embedding.weight)
    trained.save_pretrained(tmp_path)

    def moved(first_stage):  # by a step that moves nothing
        still = {"adversarial": None, "optimizer": lambda groups: torch.optim.SGD(groups, lr=0.0)}
        model = module(autoencoder=first_stage, quantization=kind(), **still)
        before = model.autoencoder.quantize.embedding.weight.detach().clone()
        fit(model, 1)
        return not torch.equal(model.autoencoder.quantize.embedding.weight, before)

    assert not moved(str(tmp_path))
    assert not moved(VQModel.from_pretrained(tmp_path))
    assert moved(VQModel.from_config(trained.config))


def test_convolutions_take_bf16_while_losses_stay_in_float32():
    model, lowered = module(), {"encoder": set(), "codes": set()}
    for name, part in (("encoder", model.autoencoder.encoder), ("codes", model.quantization)):
        part.register_forward_hook(lambda *_, name=name: lowered[name].add(torch.is_autocast_enabled("cpu")))
    done = fit(model, 3, precision="bf16-mixed")
    assert True in lowered["encoder"]
    assert lowered["codes"] == {False}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert done.callback_metrics["train/loss"].dtype == torch.float32
    assert 0 < float(done.callback_metrics["train/adaptive_weight"]) < 1e4


# --- resumed, and on several ranks -----------------------------------------------------------------------------------


def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_not_stopped(tmp_path):
    def checkpoints(folder):
        return (ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=3, save_top_k=-1),)

    fit(module(), 6, callbacks=checkpoints("whole"))
    torch.manual_seed(99)
    trainer(6, callbacks=checkpoints("resumed")).fit(
        module(), images_data(), ckpt_path=tmp_path / "whole/step=3.ckpt", weights_only=True
    )
    whole, resumed = (state_of(tmp_path / folder / "step=6.ckpt") for folder in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert [name for name, value in whole.items() if not torch.equal(value, resumed[name])] == []
    assert bool((whole["quantization.usage"] == 1).any())  # revived at the last step
    other = module(autoencoder=network(VQModel, num_vq_embeddings=32))
    with refused("is of another model"):
        trainer(6).fit(other, images_data(), ckpt_path=tmp_path / "whole/step=3.ckpt", weights_only=True)


def train_on_ranks(ranks: int, folder: str) -> int:
    checkpoint = ModelCheckpoint(folder, filename="ranks", every_n_train_steps=4)
    # Codes are revived from a pool that grows with the ranks.
    codes, perceptual = MovingAverageQuantization(revive_below=0), PerceptualLoss("builtin:cifar10", weight=0.1)
    model = module(quantization=codes, perceptual=perceptual, **SGD)
    options = {"devices": ranks, "strategy": "ddp"} if ranks > 1 else {}
    trainer(4, folder, (checkpoint,), gradient_clip_val=1.0, **options).fit(model, images_data(batch_size=8 // ranks))
    return 0


def test_two_ranks_train_what_one_does_with_batches_twice_as_large(tmp_path):
    train_on_ranks(1, str(tmp_path / "one"))
    output = tmp_path / "output.txt"
    codes = finish(*start_ranks(2, train_on_ranks, 2, str(tmp_path / "two"), output=output))
    assert set(codes) == {0}, output.read_text()[-4000:]
    one, two = (state_of(tmp_path / folder / "ranks.ckpt") for folder in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
