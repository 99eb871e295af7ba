"""Training as a user does it: from a plain Trainer script."""

import copy

import lightning as L
import pytest
import torch
from diffusers.models.embeddings import LabelEmbedding
from torch import nn
from torch.utils.data import DataLoader

from ldmprobe.callbacks import DDIMProbe, DenoisingProbe
from ldmprobe.data.images import ImageData
from ldmprobe.diffusion.adaptive_timesteps import AdaptiveLoss
from ldmprobe.diffusion.timesteps import StarvedBand, Stratified, UniformLogSNR
from ldmprobe.diffusion.weighting import LearnedUncertainty, MinSNR
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import ClassConditioning
from ldmprobe.training.checkpoint.load import load_model
from ldmprobe.training.finetuning import FinetunedDiffusion
from ldmprobe.training.latent_diffusion import LatentDiffusion
from tests.helpers import refused, sd_scheduler, tiny_unet
from tests.pipelines import autoencoder, dit, saved


def digits(**kwargs):
    return ImageData("builtin:digits", label_column="label", batch_size=16, check_rows=5, **kwargs)


def module(**kwargs):
    torch.manual_seed(0)
    network = tiny_unet(channels=1, num_class_embeds=11, dropout=0.1)
    settings = {"conditioning": ClassConditioning(10), "ema_decay": 0.99, "validation_timesteps": 3, "optimizer": adam}
    return LatentDiffusion(network, **{**settings, **kwargs})


def adam(params):
    return torch.optim.AdamW(params, lr=2e-3)


def trainer(folder, max_steps=6, **kwargs):
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "val_check_interval": 3,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 1,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(default_root_dir=str(folder), max_steps=max_steps, max_epochs=-1, **{**settings, **kwargs})


def stopped(folder, max_steps, model=None, data=None, **settings):
    """The checkpoint of a run that ends at this step."""
    fit = trainer(folder, max_steps, **settings)
    fit.fit(model or module(), data or digits())
    fit.save_checkpoint(folder / "stopped.ckpt")
    return str(folder / "stopped.ckpt")


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []


class OwnData(L.LightningDataModule):
    """Data that say what they are, and show no images but in their batches."""

    image_shape, batch_names, num_classes, checked_captions = (1, 8, 8), ("image", "label"), 12, ()

    def __init__(self, labels):
        super().__init__()
        self.rows = [
            {"image": torch.linspace(-1, 1, 64).view(1, 8, 8), "label": label, "index": i}
            for i, label in enumerate(labels)
        ]

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=4)


def test_classes_of_data_of_ones_own_are_checked_by_what_they_say_and_by_their_first_batch(tmp_path):
    data = OwnData([1, 2, 3, 10])
    with refused("the data has 12 classes"):
        trainer(tmp_path).fit(module(), data)
    data.num_classes = 10
    with refused("A batch has labels from 1 to 10, and ClassConditioning num_classes 10"):
        trainer(tmp_path).fit(module(), data)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_loss_falls_for_every_prediction_type(tmp_path, prediction_type):
    # Held-out ε-error by the EMA weights, same images, noise and timesteps, before and after.
    model = module(scheduler=sd_scheduler(prediction_type=prediction_type), ema_decay=0.9)
    fit = trainer(tmp_path, max_steps=40, val_check_interval=40, limit_val_batches=2)
    data = digits()
    before = fit.validate(model, data, verbose=False)[0]["val/loss"]
    fit.fit(model, data)
    after = fit.validate(model, data, verbose=False)[0]["val/loss"]
    assert after < 0.85 * before


def test_average_follows_optimizer_steps_not_batches(tmp_path):
    model = module()
    trainer(tmp_path, max_steps=3, accumulate_grad_batches=2).fit(model, digits())
    assert int(model.ema.num_updates) == 3


def test_checkpoint_rebuilds_the_averaged_model(tmp_path):
    model = module(codec=LatentCodec(scale="measure"), scheduler=sd_scheduler(prediction_type="v_prediction"))
    loaded = load_model(stopped(tmp_path, 3, model))
    assert (loaded.weights, loaded.trained_steps, loaded.latent_shape) == ("ema", 3, (1, 8, 8))
    assert loaded.schedule.prediction.name == "v_prediction"
    assert_same_state(loaded.network.state_dict(), model.ema.network.state_dict())
    assert torch.equal(loaded.codec.scale, model.codec.scale)
    z, t = torch.randn(2, 1, 8, 8), torch.tensor([10, 900])
    condition = {"class_labels": torch.tensor([1, 2])}
    with torch.no_grad():
        torch.testing.assert_close(loaded.predict(z, t, condition), model.diffusion_model().predict(z, t, condition))


def test_gradient_of_a_weighted_loss_is_that_of_the_weights_times_raw_errors(tmp_path):
    model = module(weighting=MinSNR(), timesteps=StarvedBand(0, 500), normalize_weighting=False)
    data = digits()
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(model, data)
    batch = next(data.reference_batches(16))
    torch.manual_seed(3)
    model.log = lambda *args, **kwargs: None  # outside of a loop there is nothing to log to
    out = model.training_step(batch, 0)
    weight = (5 * torch.exp(-out["log_snr"])).clamp(max=1)
    torch.testing.assert_close(out["loss"], (weight * out["epsilon_mse"]).mean())
    probability = StarvedBand(0, 500).probabilities(model.schedule)
    assert set(out["sampling_probability"].tolist()) <= set(probability.unique().tolist())


def test_a_batch_tells_the_probability_of_its_draw_not_that_which_its_losses_lead_to():
    model = LatentDiffusion(
        Seen(), timesteps=AdaptiveLoss(num_bins=4, decay=0.0), latent_shape=(1, 2, 2), ema_decay=None
    )
    model.log = lambda *args, **kwargs: None
    model.gathered = lambda values: values
    torch.manual_seed(0)
    for k in range(3):
        before = model.timesteps.probabilities(model.schedule)
        out = model.training_step({"image": torch.zeros(8, 1, 2, 2)}, k)
        t = model.schedule.timesteps_at(out["log_snr"])
        assert torch.equal(out["sampling_probability"], before[t])
    assert not torch.allclose(model.timesteps.probabilities(model.schedule)[t], before[t])


@pytest.mark.parametrize("check_rows", [5, 0])
def test_codec_that_measures_its_scale_gives_unit_latents(tmp_path, check_rows):
    model = module(codec=LatentCodec(scale="measure"))
    data = ImageData("builtin:digits", label_column="label", batch_size=16, check_rows=check_rows)
    trainer(tmp_path, max_steps=1).fit(model, data)
    latents = torch.cat([model.codec.encode(batch["image"]) for batch in data.reference_batches(1024)])
    assert float(latents.mean()) == pytest.approx(0, abs=1e-4)
    assert float(latents.std()) == pytest.approx(1, abs=1e-4)


def test_latents_that_a_config_scales_to_almost_nothing_are_told_before_training(tmp_path):
    network = tiny_unet(channels=2)
    model = LatentDiffusion(network, LatentCodec(autoencoder(in_channels=1, out_channels=1)), validation_timesteps=2)
    with pytest.warns(UserWarning, match=r"standard deviation 0\.0.*by the scale 0\.1822 of the autoencoder's config"):
        trainer(tmp_path, max_steps=1).fit(model, digits())
    measured = LatentDiffusion(network, LatentCodec(model.codec.autoencoder, "measure"), validation_timesteps=2)
    trainer(tmp_path, max_steps=1).fit(measured, digits())


def test_a_scale_that_nothing_can_be_measured_on_is_refused_before_anything_is_written(tmp_path):
    batches = [{"image": part, "index": torch.arange(16)} for part in (torch.rand(32, 1, 8, 8) * 2 - 1).split(16)]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    model = LatentDiffusion(tiny_unet(channels=1), LatentCodec(scale="measure"), validation_timesteps=2)
    with refused("The scale of the latents is to be measured on training images, of which the data show none"):
        trainer(tmp_path, callbacks=[DenoisingProbe(1, num_images=16, num_draws=32)]).fit(model, loader, loader)
    assert not list(tmp_path.iterdir())
    model.codec.measure_scale(batches)
    trainer(tmp_path, max_steps=1).fit(model, loader, loader)


def test_plain_tensor_loaders_work_without_a_datamodule(tmp_path):
    images = torch.rand(64, 1, 8, 8) * 2 - 1
    batches = [{"image": part, "index": torch.arange(len(part))} for part in images.split(16)]
    model = LatentDiffusion(tiny_unet(channels=1), validation_timesteps=2)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    probes = [DDIMProbe(2, num_samples=8, num_steps=2), DenoisingProbe(2, num_images=16, num_draws=32)]
    trainer(tmp_path, callbacks=probes).fit(model, loader, loader)
    assert len(list((tmp_path / "probes").glob("*.parquet"))) == 8


def test_mixed_precision_trains_and_probes(tmp_path):
    model, probe = module(), DDIMProbe(3, num_samples=8, num_steps=2, num_reference=256)
    trainer(tmp_path, precision="bf16-mixed", callbacks=[probe]).fit(model, digits())
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_the_average_of_a_run_in_half_precision_is_probed_saved_and_loaded_in_float32(tmp_path):
    model = module(ema_decay=0.999, ema_warmup=False)
    probe = DDIMProbe(3, num_samples=8, num_steps=2, num_reference=256)
    loaded = load_model(stopped(tmp_path, 6, model, precision="bf16-true", callbacks=[probe]))
    average = dict(model.ema.network.named_parameters())
    assert model.network.conv_in.weight.dtype == torch.bfloat16
    for name, parameter in loaded.network.named_parameters():
        assert average[name].dtype == torch.float32
        assert torch.equal(parameter, average[name])
    digits_lost = average["conv_in.weight"] - average["conv_in.weight"].bfloat16()
    assert digits_lost.abs().max() > 0  # the few steps of it are there


class OneLayer(nn.Module):
    """The least that follows the Denoiser protocol."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, z_t, t, condition):
        return self.layer(z_t)


def test_compiled_network_keeps_its_checkpoint_keys(tmp_path):
    network = OneLayer()
    keys = set(LatentDiffusion(copy.deepcopy(network)).state_dict())
    compiled = LatentDiffusion(network, compile=True, validation_timesteps=1)
    trainer(tmp_path, max_steps=2).fit(compiled, digits())
    assert set(compiled.state_dict()) == keys


def test_checkpoint_of_a_network_that_is_not_of_diffusers_says_how_to_probe_it(tmp_path):
    with refused(r"holds a OneLayer, which is not of diffusers; probe it from Python"):
        load_model(stopped(tmp_path, 1, LatentDiffusion(OneLayer())))


def test_learning_rate_schedule_steps_with_the_optimizer(tmp_path):
    def schedule(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    model = module(lr_scheduler=schedule)
    fit = trainer(tmp_path, max_steps=4, accumulate_grad_batches=2)
    fit.fit(model, digits())
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(2e-3 / 5)


def test_a_run_by_soap_resumes_between_two_updates_of_its_eigenbases(tmp_path):
    soap = pytest.importorskip("pytorch_optimizer").SOAP

    def by_soap():
        return module(optimizer=lambda params: soap(params, lr=2e-3, precondition_frequency=2))

    whole, resumed = by_soap(), by_soap()
    trainer(tmp_path / "whole", max_steps=5).fit(whole, digits())
    three = stopped(tmp_path / "first", 3, by_soap())
    trainer(tmp_path / "second", max_steps=5).fit(resumed, digits(), ckpt_path=three)
    assert_same_state(whole.state_dict(), resumed.state_dict())


def test_validation_noise_is_fixed_and_draws_nothing(tmp_path):
    model, data = module(), digits()
    fit = trainer(tmp_path)
    first = fit.validate(model, data, verbose=False)
    torch.manual_seed(123)
    second = fit.validate(model, data, verbose=False)
    assert first == second


@pytest.mark.parametrize("weighting", [MinSNR(), LearnedUncertainty()], ids=lambda weighting: type(weighting).__name__)
def test_an_adaptive_sampler_hears_the_losses_and_its_state_is_in_the_checkpoint(tmp_path, weighting):
    model = module(weighting=weighting, timesteps=Stratified(AdaptiveLoss()))
    three = stopped(tmp_path, 3, model)
    sampler = model.timesteps.sampler
    assert int(sampler.seen.sum()) == 3 * 16
    p, uniform = (each.probabilities(model.schedule) for each in (model.timesteps, UniformLogSNR()))
    assert not torch.allclose(p, uniform)
    state = torch.load(three, weights_only=True)["state_dict"]
    torch.testing.assert_close(state["timesteps.sampler._extra_state"]["average"], sampler.average, rtol=0, atol=0)


# --- noise, memory ---------------------------------------------------------------------------------------------------


class Seen(nn.Module):
    """Predicts zero and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.z_t = []

    def forward(self, z_t, t, condition):
        self.z_t.append(z_t.detach())
        return self.weight * z_t


def _shown_and_errors(**noise):
    """What the network is shown of z_0 = 0 at full noise, and the mean squares of ε, its targets."""
    network = Seen()
    model = LatentDiffusion(network, latent_shape=(2, 16, 16), ema_decay=None, **noise)
    model.log = lambda *args, **kwargs: None
    model.timesteps.forward = lambda number, schedule: torch.full((number,), schedule.num_timesteps - 1)
    torch.manual_seed(0)
    out = model.training_step({"image": torch.zeros(512, 2, 16, 16)}, 0)
    sigma = model.schedule.sigma[-1].float()
    return network.z_t[0] / sigma, out["epsilon_mse"]


def test_offset_noise_moves_each_channel_of_each_sample_by_one_number():
    shown, target = _shown_and_errors(offset_noise=0.5)
    means = shown.mean((2, 3))
    # Of 1,024 means the variance is s² + 1/256, to 1024^-1/2 · 2^1/2 = 4.4 %; within a channel it stays 1.
    assert float(means.var()) == pytest.approx(0.25 + 1 / 256, rel=0.15)
    assert float((shown - means[:, :, None, None]).var()) == pytest.approx(1 - 1 / 256, rel=0.02)
    torch.testing.assert_close(target, shown.pow(2).mean((1, 2, 3)), rtol=1e-4, atol=0)


def test_input_perturbation_is_in_the_input_and_not_in_the_target():
    shown, target = _shown_and_errors(input_perturbation=0.5)
    assert float(shown.var()) == pytest.approx(1.25, rel=0.02)
    assert float(target.mean()) == pytest.approx(1.0, rel=0.02)


def test_without_either_nothing_is_drawn_for_them():
    (plain, _), (both, _) = _shown_and_errors(), _shown_and_errors(offset_noise=1e-9, input_perturbation=1e-9)
    torch.testing.assert_close(plain, both, rtol=0, atol=1e-6)


@pytest.mark.parametrize("finetuned", [False, True])
def test_the_labels_of_a_dit_are_dropped_by_the_conditioning_alone(finetuned):
    torch.manual_seed(0)
    told, settings = [], {"ema_decay": 0.9}
    if finetuned:
        dit_module = FinetunedDiffusion(str(saved("DiTPipeline")), dropout=0.25, **settings)
    else:
        conditioning = ClassConditioning(10, dropout=0.25)
        dit_module = LatentDiffusion(dit(10, num_layers=2), conditioning=conditioning, **settings)
    conditioning, null = dit_module.conditioning, dit_module.conditioning.num_classes
    for network in (dit_module.network, dit_module.ema.network):
        for part in network.train().modules():
            if isinstance(part, LabelEmbedding):
                assert len(part.embedding_table.weight) == null + 1
                part.embedding_table.register_forward_pre_hook(lambda part, given: told.append(given[0].clone()))
    condition = conditioning.for_training({"label": torch.arange(4000) % 10})
    z = torch.randn(4000, 2, 8, 8)
    for network in (dit_module.network, dit_module.ema.network):
        with torch.no_grad():
            network(z, torch.zeros(4000, dtype=torch.long), **condition)
    assert len(told) >= 2
    assert all(torch.equal(labels, condition["class_labels"]) for labels in told)
    assert float((told[0] == null).float().mean()) == pytest.approx(0.25, abs=4 * 0.007)  # standard errors


def test_a_network_without_gradient_checkpointing_says_so():
    with refused("OneLayer has no gradient checkpointing; leave out"):
        LatentDiffusion(OneLayer(), gradient_checkpointing=True)
