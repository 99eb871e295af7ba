"""Preconditioned and ScoreNetwork: formulas, precision, which schedules they go with, and what becomes of them in
training."""

import math
import warnings

import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, ScoreSdeVeScheduler
from torch import nn

from ldmprobe import (
    EDM,
    VESDE,
    VPSDE,
    BetaTimesteps,
    DiffusionModel,
    EDMProcess,
    EpsilonNetwork,
    EpsilonPrediction,
    LatentDiffusion,
    LearnedUncertainty,
    LogitNormal,
    LogNormalSigma,
    LoRA,
    MinSNR,
    NoiseSchedule,
    Preconditioned,
    Sampling,
    ScoreNetwork,
    UniformLogSNR,
    load_model,
    probe_sampling,
)
from ldmprobe.callbacks import DDIMProbe, DenoisingProbe
from ldmprobe.models.denoiser import as_denoiser, check_denoiser, from_network_config, network_config
from ldmprobe.pretrained.export import as_pipeline
from ldmprobe.pretrained.lora import has_lora, merge_lora
from tests.helpers import FLOAT32, FLOAT64, refused, sd_scheduler, tiny_unet
from tests.test_layers import SOURCES, at_import, module_of
from tests.training.test_latent_diffusion import assert_same_state, digits, trainer

Z = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.002, 1.0, 80.0])
FOURIER = {"time_embedding_type": "fourier"}


class Told(nn.Module):
    """Answers with a constant share of z, and keeps what it was asked."""

    def __init__(self, share: float = 0.5):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, z_t, t, condition):
        self.asked = z_t, t
        return self.share * z_t


def test_preconditioning_is_that_of_the_paper():
    network = Told()
    answer = Preconditioned(network, sigma_data=0.5)(Z, SIGMA, {})
    z, told = network.asked
    for k, sigma in enumerate(SIGMA.tolist()):
        total = sigma**2 + 0.25
        torch.testing.assert_close(z[k], Z[k] / math.sqrt(total), **FLOAT32)
        assert float(told[k]) == pytest.approx(math.log(sigma) / 4, rel=1e-6)
        expected = 0.25 / total * Z[k] + sigma * 0.5 / math.sqrt(total) * 0.5 * Z[k] / math.sqrt(total)
        torch.testing.assert_close(answer[k], expected, **FLOAT32)


def test_an_epsilon_network_sees_what_a_variance_preserving_one_would():
    network = Told()
    answer = EpsilonNetwork(network)(Z, SIGMA, {})
    alpha = 1 / (1 + SIGMA**2).sqrt()
    torch.testing.assert_close(network.asked[0], alpha.view(-1, 1, 1, 1) * Z, **FLOAT32)
    torch.testing.assert_close(network.asked[1], SIGMA.log() / 4, **FLOAT32)
    assert torch.equal(answer, 0.5 * network.asked[0])


def test_edm_s_weights_make_every_level_s_loss_on_f_count_one():
    """‖Δx_0‖² = c_out² ‖ΔF‖², and λ(σ) = 1/c_out²."""
    process, sigma_data = EDMProcess(), 1.0
    c_out = process.sigma * sigma_data / (process.sigma**2 + sigma_data**2).sqrt()
    weight = EDM(sigma_data).prediction_weight(process.log_snr, process.prediction)
    torch.testing.assert_close(weight * c_out**2, torch.ones(1000, dtype=torch.float64), **FLOAT64)


def test_the_score_of_a_fourier_network_becomes_its_epsilon():
    network = tiny_unet(**FOURIER).eval()
    with torch.no_grad():
        score = network(Z, SIGMA).sample
        answer = ScoreNetwork(network)(Z, SIGMA, {})
    torch.testing.assert_close(answer, -SIGMA.view(-1, 1, 1, 1) * score, **FLOAT32)
    for bare in (network, Preconditioned(network)):
        with refused("time_embedding_type 'fourier'.*ScoreNetwork"):
            as_denoiser(bare)(Z, SIGMA, {})


@pytest.mark.parametrize("kind", [Preconditioned, ScoreNetwork])
def test_weights_in_half_precision_see_sigma_and_z_at_full_precision(kind):
    """In bfloat16, z at σ = 80 is wrong by as much as the data are large, and at σ = .002 by more than the noise."""
    network = kind(Told(0.0).bfloat16())
    model = DiffusionModel(network, EDMProcess() if kind is Preconditioned else VESDE(0.002, 80), (2, 8, 8))
    with torch.no_grad():
        answer = model.predict(80 * Z, torch.full((3,), 80.0), {})
    asked, told = network.network.asked
    assert (asked.dtype, told.dtype, answer.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(answer, 80 * Z / 6401 if kind is Preconditioned else 0 * Z, **FLOAT32)


@pytest.mark.parametrize(
    ("network", "schedule", "message"),
    [
        (Preconditioned(Told()), VPSDE(), "Preconditioned is told σ of a process with α = 1, and the VPSDE tells"),
        (ScoreNetwork(Told()), sd_scheduler(), "ScoreNetwork is told σ .* DDIMScheduler tells something else; use VESDE"),
        (Preconditioned(Told()), VESDE(), "answers sample, and the VESDE has prediction epsilon; .*SamplePrediction"),
        (ScoreNetwork(Told()), EDMProcess(), "answers epsilon, and the EDMProcess has prediction sample"),
        (Told(), EDMEulerScheduler(), "EDMEulerScheduler has its network in ldmprobe's Preconditioned; .*sigma_data: 0.5"),
        (Preconditioned(Told()), EDMEulerScheduler(), "Preconditioned, init_args: .*sigma_data: 0.5"),
        (tiny_unet(), VESDE(), "VESDE tells UNet2DModel σ .* scale up to 50, .*EpsilonNetwork, init_args"),
        (tiny_unet(), EDMProcess(), "EDMProcess tells UNet2DModel σ .* scale up to 80, .*Preconditioned, init_args"),
        (Told(), ScoreSdeVeScheduler(), "ScoreSdeVeScheduler has its network in ldmprobe's ScoreNetwork"),
    ],
)  # fmt: skip
def test_a_schedule_that_tells_or_asks_something_else_is_refused_before_training(network, schedule, message):
    for make in (DiffusionModel, LatentDiffusion):
        with refused(message):
            make(network, **{"scheduler" if make is LatentDiffusion else "schedule": schedule}, latent_shape=(2, 8, 8))


def test_a_network_of_diffusers_that_is_compiled_or_told_sigma_in_float64_is_known():
    levels = torch.logspace(-2, 1, 10, dtype=torch.float64)
    for network, schedule in (
        (torch.compile(tiny_unet(), backend="eager"), VESDE()),
        (tiny_unet(), NoiseSchedule(torch.ones_like(levels), levels, EpsilonPrediction(), levels)),
    ):
        with refused("σ in the place of a timestep"):
            DiffusionModel(network, schedule, (2, 8, 8))


@pytest.mark.parametrize("kind", [Preconditioned, EpsilonNetwork])
def test_weights_for_data_of_another_deviation_are_refused_before_training(kind):
    def trained(sigma_data, weighting):
        schedule = EDMProcess() if kind is Preconditioned else VESDE()
        network = kind(Told(), sigma_data)
        return LatentDiffusion(network, scheduler=schedule, weighting=weighting, latent_shape=(2, 8, 8))

    for weighting in (EDM(), LearnedUncertainty()):
        with refused(rf"{type(weighting).__name__} has sigma_data 1, and {kind.__name__} has 0.5; .*`sigma_data: 0.5`"):
            trained(0.5, weighting)
        trained(1.0, weighting)
    trained(0.5, LearnedUncertainty(EDM(0.5)))
    trained(0.5, MinSNR())


@pytest.mark.parametrize("kind", [Preconditioned, EpsilonNetwork])
def test_what_is_no_standard_deviation_and_a_network_in_a_wrapper_are_refused(kind):
    with refused(f"{kind.__name__} got sigma_data 0; expected a finite number above 0"):
        kind(Told(), sigma_data=0)
    with refused(f"{kind.__name__} got a network that is in Preconditioned already"):
        kind(Preconditioned(Told()))


@pytest.mark.parametrize("wrap", [lambda n: Preconditioned(n, 0.7), EpsilonNetwork, ScoreNetwork])
def test_description_rebuilds_wrapper_and_network(wrap):
    network = wrap(tiny_unet())
    again = from_network_config(network_config(network))
    again.load_state_dict(network.state_dict())
    assert network_config(again) == network_config(network)
    with torch.no_grad():
        assert torch.equal(again.eval()(Z, SIGMA, {}), network.eval()(Z, SIGMA, {}))
    assert network_config(wrap(Told())) is None
    with refused("its network in the wrapper Wrapped, a class of your own; read it from Python"):
        from_network_config({"class_name": "Wrapped", "network": network_config(network.network)})


def test_what_a_wrapped_network_takes_is_asked_of_the_network():
    network = Preconditioned(tiny_unet(channels=2))
    check_denoiser(network, (2, 8, 8), {}, torch.device("cpu"))
    with refused("Preconditioned cannot take latents of shape \\(3, 8, 8\\).*in_channels and out_channels 3"):
        check_denoiser(network, (3, 8, 8), {}, torch.device("cpu"))
    text = {"encoder_hidden_states": torch.zeros(1, 4, 16)}  # what a network of one's own takes of it, nobody knows
    check_denoiser(Preconditioned(Told()), (2, 8, 8), text, torch.device("cpu"))


def test_lora_updates_a_wrapped_network_and_is_merged():
    network = Preconditioned(tiny_unet(down_block_types=["AttnDownBlock2D"], attention_head_dim=8)).eval()
    LoRA(rank=2).add_to(network)
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    with torch.no_grad():
        updated = network(Z, SIGMA, {})
        merge_lora(network)
        torch.testing.assert_close(network(Z, SIGMA, {}), updated, rtol=1e-4, atol=1e-5)
    assert not has_lora(network)


def edm_module(**kwargs):
    torch.manual_seed(0)
    settings = {"weighting": EDM(0.5), "timesteps": LogNormalSigma(), "ema_decay": 0.9, "validation_timesteps": 3}
    settings = {"scheduler": EDMProcess(), "latent_shape": (1, 8, 8), **settings, **kwargs}
    return LatentDiffusion(Preconditioned(tiny_unet(channels=1, dropout=0.1), 0.5), **settings)


def score_module(**kwargs):
    torch.manual_seed(0)
    settings = {"scheduler": VESDE(num_timesteps=10), "ema_decay": 0.9, "validation_timesteps": 3, **kwargs}
    return LatentDiffusion(ScoreNetwork(tiny_unet(channels=1, **FOURIER)), **settings)


@pytest.mark.parametrize(
    ("make", "precision"),
    [
        (edm_module, "32-true"),
        (edm_module, "bf16-true"),
        pytest.param(score_module, "32-true", marks=pytest.mark.reliability),  # one wrapper casts for both
        (score_module, "bf16-true"),
    ],
)
def test_wrapped_networks_train_are_probed_saved_and_go_on(tmp_path, make, precision):
    seen, data = set(), digits()

    def look(wrapper, asked):
        seen.update(value.dtype for value in asked[:2] if value.is_floating_point())

    whole = make()
    whole.network.register_forward_pre_hook(look)
    probes = [
        DDIMProbe(2, num_samples=8, num_steps=3, num_reference=256),
        DenoisingProbe(4, num_images=16, num_draws=32, num_reference=256),
    ]
    fit = trainer(tmp_path / "whole", max_steps=4, precision=precision, callbacks=probes)
    fit.fit(whole, data)
    assert seen == {torch.float32}
    assert len(list((tmp_path / "whole" / "probes").glob("*.parquet"))) == 5

    half = trainer(tmp_path / "half", max_steps=2, precision=precision)
    half.fit(make(), data)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, more = make(), trainer(tmp_path / "half", max_steps=4, precision=precision)
    more.fit(resumed, data, ckpt_path=str(tmp_path / "half.ckpt"))
    assert_same_state(resumed.state_dict(), whole.state_dict())

    fit.save_checkpoint(tmp_path / "whole.ckpt")
    loaded = load_model(tmp_path / "whole.ckpt")
    assert loaded.schedule.description == whole.schedule.description
    assert network_config(loaded.network) == network_config(whole.network)
    assert_same_state(loaded.network.state_dict(), whole.ema.network.state_dict())
    record = probe_sampling(loaded, None, Sampling(num_samples=8, num_steps=3))
    assert record.provenance["prediction_type"] == whole.network.answers
    with refused("diffusers has no pipeline for a (Preconditioned|ScoreNetwork)"):
        as_pipeline(loaded)


def test_a_density_that_the_schedule_cuts_off_is_told():
    with pytest.warns(UserWarning, match=r"LogNormalSigma has 2\.\d% of its density beyond .*log-SNR -5\.\d … 7\.\d"):
        LatentDiffusion(tiny_unet(), timesteps=LogNormalSigma())


@pytest.mark.parametrize("timesteps", [UniformLogSNR(), LogitNormal(), BetaTimesteps(1.0, 5.0)])
def test_a_density_without_the_level_of_zero_snr_that_sampling_begins_at_is_told(timesteps):
    zero_snr = sd_scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    told = rf"{type(timesteps).__name__} draws the last timestep, .*zero terminal SNR.*evenly drawn: 0.001"
    with pytest.warns(UserWarning, match=told):
        LatentDiffusion(tiny_unet(), scheduler=zero_snr, timesteps=timesteps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LatentDiffusion(tiny_unet(), scheduler=zero_snr)
        LatentDiffusion(tiny_unet(), scheduler=FlowMatchEulerDiscreteScheduler(), timesteps=timesteps)
        LatentDiffusion(tiny_unet(), timesteps=BetaTimesteps(1.0, 5.0))


def test_gradient_checkpointing_reaches_the_network_in_the_wrapper():
    assert edm_module(gradient_checkpointing=True).network.network.is_gradient_checkpointing


def test_edm_weights_near_sigma_min_are_float32_whatever_the_network(tmp_path):
    module = edm_module().bfloat16()
    errors = torch.full((2,), 1e-6, dtype=torch.float32)
    losses = module.objective.losses(errors, torch.tensor([0, 999]))
    assert losses.dtype == torch.float32
    raw = EDM(0.5).prediction_weight(module.schedule.log_snr, module.schedule.prediction)[[0, 999]]
    assert float(losses[0] / losses[1]) == pytest.approx(float(raw[0] / raw[1]), rel=1e-5)


def test_a_process_s_kind_of_prediction_can_be_another():
    model = DiffusionModel(ScoreNetwork(Told()), EDMProcess(prediction=EpsilonPrediction()), (2, 8, 8))
    assert model.schedule.prediction.name == "epsilon"


def test_whoever_reads_a_network_has_imported_the_wrappers():
    """The commands are given a model and nothing else, and a wrapper is known by name where it is imported."""
    sources, seen, ahead = {module_of(path): path for path in SOURCES}, set(), ["ldmprobe.pretrained.load"]
    while ahead:
        name = ahead.pop()
        seen.add(name)
        ahead += [other for other in at_import(sources[name]) if other in sources and other not in seen]
    assert "ldmprobe.models.preconditioned" in seen
