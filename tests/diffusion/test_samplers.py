"""What each sampler is held to beside its golden ideal: closed forms, limits, settings, and what is refused."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ldmprobe.analysis.divergence import gaussian_kl
from ldmprobe.analysis.ideal import IdealPath, ideal_path
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.grids import KarrasGrid, LogSNRGrid, ScheduleGrid, entered_at, through
from ldmprobe.diffusion.named import by_name
from ldmprobe.diffusion.prediction import EpsilonPrediction
from ldmprobe.diffusion.samplers import (
    DDIM,
    DDPM,
    AnnealedLangevin,
    DPMSolver,
    EulerAncestral,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    Resampling,
    Sampler,
    UniPC,
    moves,
)
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.trajectory import sampling_steps
from tests.helpers import FLOAT64, refused, sd_scheduler, told

MEAN = torch.linspace(-1, 1, 6, dtype=torch.float64)
VARIANCE = torch.logspace(-2, 1, 6, dtype=torch.float64)
SCHEDULE = as_schedule(sd_scheduler())
SIGMA = torch.logspace(-2, 1.7, 300, dtype=torch.float64)
EXPLODING = NoiseSchedule(torch.ones(300), SIGMA, EpsilonPrediction(), SIGMA.log() / 4, float(SIGMA[-1]))


def ideal_of(sampler: Sampler, grid) -> IdealPath:
    grid = sampler.levels_on(grid)
    return ideal_path(MEAN, VARIANCE, sampler.program(grid), grid, grid.prior_std)


def end_kl(path: IdealPath) -> float:
    return float(gaussian_kl(path.mean_s[-1], path.var_s[-1], MEAN, VARIANCE).mean())


def test_names_on_the_command_line_make_samplers_that_records_call_the_same():
    made = {name: make() for name, make in by_name(Sampler).items() if make.func.__module__.startswith("ldmprobe.")}
    assert {name: sampler.in_words for name, sampler in made.items()} == {name: name for name in made}
    solvers = {"ddim", "ddpm", "ddpm-large", "euler", "euler-ancestral", "heun", "dpmpp-2m", "dpmpp-3m", "unipc"}
    stochastic = {"dpmpp-2m-sde", "euler-maruyama", "predictor-corrector", "annealed-langevin", "resampling"}
    assert solvers | stochastic <= made.keys()


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (DDIM(), "ddim"),
        (DDIM(eta=0.5), "ddim, eta 0.5"),
        (DPMSolver(order=2, sde=True), "dpmpp-2m-sde"),
        (DPMSolver(order=1), "dpmpp, order 1"),
        (Heun(s_churn=10.0, s_tmax=40.0), "heun, s_churn 10.0, s_tmax 40.0"),
        (PredictorCorrector(predictor=DDIM(eta=1.0)), "predictor-corrector, predictor ddim, eta 1.0"),
    ],
)
def test_settings_that_are_not_the_default_are_told(sampler: Sampler, words: str):
    assert sampler.in_words == words


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: DDIM(eta=1.5), r"DDIM got eta 1\.5; expected at least 0 and at most 1"),
        (lambda: EulerAncestral(eta=-1.0), r"EulerAncestral got eta -1\.0"),
        (lambda: DDPM(variance="learned"), r"variance 'learned'; expected 'small' or 'large'"),
        (lambda: Heun(s_churn=-1.0), r"Heun got s_churn -1\.0; expected at least 0"),
        (lambda: Heun(s_tmin=2.0, s_tmax=1.0), r"Heun got s_tmin 2\.0 and s_tmax 1\.0; expected s_tmax the larger"),
        (lambda: DPMSolver(order=4), r"DPMSolver got order 4"),
        (lambda: DPMSolver(order=3, sde=True), r"order 3, sde True; expected order 1, 2 or 3, of the SDE 1 or 2"),
        (lambda: UniPC(order=0), r"UniPC got order 0; expected 1, 2 or 3"),
        (lambda: AnnealedLangevin(step=1.2), r"step 1\.2; expected a number above 0, at most 1, or 'auto'"),
        (lambda: AnnealedLangevin(step="small"), r"step small; expected a number above 0, at most 1, or 'auto'"),
        (lambda: AnnealedLangevin(num_steps_per_level=0), r"num_steps_per_level 0; expected at least 1"),
        (lambda: Resampling(num_resamples=0), r"num_resamples 0; expected at least 1"),
        (lambda: PredictorCorrector(num_corrections=0), r"num_corrections 0; expected at least 1"),
    ],
)
def test_settings_that_make_no_sampler_are_refused(make, text: str):
    with refused(text):
        make()


@pytest.mark.parametrize(("predictor", "remembered"), [(DPMSolver(), "x0"), (UniPC(), "x0"), (Heun(), None)])
def test_a_predictor_that_goes_on_from_earlier_answers_is_refused(predictor, remembered):
    grid = LogSNRGrid().levels(as_schedule(sd_scheduler()), 5)
    for sampler in (PredictorCorrector(predictor=predictor), Resampling(predictor=predictor)):
        if remembered is None:
            assert len(sampler.program(grid)) == 5
            continue
        with refused(rf"predictor {predictor.name}, a multistep method, .*{remembered}.*one-step method"):
            sampler.program(grid)


@pytest.mark.parametrize("scheduler", [{}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}])
def test_resampling_noises_a_latent_back_to_the_distribution_that_its_step_began_with(scheduler):
    schedule = as_schedule(sd_scheduler(**scheduler))
    grid = ScheduleGrid("trailing").levels(schedule, 5)
    assert Resampling(1).program(grid) == DDPM().program(grid)
    steps = Resampling(3).program(grid)
    assert [step.passes for step in steps] == [3, 3, 3, 3, 1]
    for step, move in zip(steps, moves(Resampling().levels_on(grid)), strict=True):
        for back in step.operations[2::3]:
            kept, v = back.coefficients["z"], VARIANCE
            there = kept**2 * (move.alpha_s**2 * v + move.sigma_s**2) + back.noise**2
            assert torch.allclose(there, move.alpha_t**2 * v + move.sigma_t**2, rtol=1e-12)


@pytest.mark.parametrize("grid", [ScheduleGrid("trailing"), ScheduleGrid("leading"), LogSNRGrid()])
def test_ancestral_sampling_is_ddim_with_eta_and_small_ddpm_is_ddim_with_eta_1(grid):
    levels = grid.levels(SCHEDULE, 10)
    for ours, ddim in ((EulerAncestral(eta=0.7), DDIM(eta=0.7)), (EulerAncestral(), DDIM(eta=1.0))):
        torch.testing.assert_close(ideal_of(ours, levels).var_s, ideal_of(ddim, levels).var_s, **FLOAT64)
    small, ddim = ideal_of(DDPM(), levels), ideal_of(DDIM(eta=1.0), levels)
    torch.testing.assert_close(small.var_s[:-1], ddim.var_s[:-1], **FLOAT64)


def test_heun_asks_twice_but_in_the_step_to_the_data_and_never_divides_by_its_sigma():
    for schedule in (SCHEDULE, EXPLODING):
        program = Heun().program(LogSNRGrid().levels(schedule, 9))
        assert [step.passes for step in program] == [2] * 8 + [1]
    flow = as_schedule(FlowMatchEulerDiscreteScheduler())
    assert [step.passes for step in Heun().program(flow.native_grid(4))] == [1, 2, 2, 1]  # α = 0 at the start
    whole = ScheduleGrid("leading").levels(SCHEDULE, 4)  # ends at the schedule's cleanest level
    assert [step.passes for step in Heun().program(whole)] == [2, 2, 2, 2]
    assert Heun().program(whole)[-1].questions[1].model_time == 0


def test_churn_is_that_of_edms_algorithm_2_by_monte_carlo():
    """The paper's lines, on 40,000 draws of each direction."""
    generator = torch.Generator().manual_seed(0)
    grid = KarrasGrid().levels(EXPLODING, 8)
    settings = {"s_churn": 2.4, "s_tmin": 0.05, "s_tmax": 20.0, "s_noise": 1.05}

    def normal():
        return torch.randn(40_000, 6, generator=generator, dtype=torch.float64)

    def slope(x, sigma):
        return (x - (MEAN + VARIANCE / (VARIANCE + sigma**2) * (x - MEAN))) / sigma

    t = [*grid.sigma_t.tolist(), 0.0]
    x = t[0] * normal()
    for now, then in pairwise(t):
        gamma = min(settings["s_churn"] / 8, math.sqrt(2) - 1) if 0.05 <= now <= 20 else 0.0
        hat = now + gamma * now
        x_hat = x + math.sqrt(hat**2 - now**2) * 1.05 * normal()
        d = slope(x_hat, hat)
        x = x_hat + (then - hat) * d
        if then:
            x = x_hat + (then - hat) * (d + slope(x, then)) / 2
    ideal = ideal_of(Heun(**settings), grid)
    mean, variance = ideal.mean_s[-1], ideal.var_s[-1]
    z_mean = (x.mean(0) - mean) / (variance / 40_000).sqrt()
    z_variance = (x.var(0) - variance) / (variance * math.sqrt(2 / 40_000))
    assert z_mean.abs().max() < 4
    assert z_variance.abs().max() < 4
    assert (ideal_of(Heun(), grid).var_s[-1] - variance).abs().max() > 10 * variance.max() / 200  # what churn does


def test_churn_goes_back_no_further_than_the_schedule_reaches():
    program = Heun(s_churn=100.0).program(LogSNRGrid().levels(EXPLODING, 6))
    assert program[0].questions[0].sigma == float(SIGMA[-1])
    assert program[3].questions[0].sigma == pytest.approx(math.sqrt(2) * LogSNRGrid().levels(EXPLODING, 6).sigma_t[3])


@pytest.mark.parametrize("sampler", [Heun(s_churn=4.0), DPMSolver(order=1)], ids=lambda s: s.in_words)
def test_a_chain_that_is_entered_later_takes_the_steps_of_the_whole_one(sampler: Sampler):
    grid = LogSNRGrid().levels(EXPLODING, 20)
    assert sampler.program(grid.after(3).after(9)) == sampler.program(grid)[12:]
    between = float(grid.log_snr[11:13].mean())
    assert sampler.program(entered_at(grid, between))[1:] == sampler.program(grid)[12:]
    assert entered_at(grid.after(3), between).of_steps == 20


@pytest.mark.parametrize("number", [1, 7, 200])
def test_langevins_variance_at_one_level_is_the_closed_form(number: int):
    """With q = (1 − a/v)²: qⁿ var + 2a (1 − qⁿ)/(1 − q), which tends to v/(1 − a/2v)."""
    grid = through(EXPLODING, torch.tensor([0.5], dtype=torch.float64))
    sigma = float(grid.sigma_t)
    path = ideal_of(AnnealedLangevin(step=0.4, num_steps_per_level=number, denoise=False), grid)
    a, v = 0.4 * sigma**2, VARIANCE + sigma**2
    q = (1 - a / v) ** 2
    expected = q**number * grid.prior_std**2 + 2 * a * (1 - q**number) / (1 - q)
    torch.testing.assert_close(path.var_s[0], expected, **FLOAT64)
    if number == 200:
        torch.testing.assert_close(path.var_s[0], v / (1 - a / 2 / v), rtol=1e-3, atol=0)


def test_euler_maruyama_tends_to_the_exact_reverse_sde_to_first_order():
    """Along it z_s − α_s μ = r (z_t − α_t μ) + N(0, v_s − r² v_t), with r = (α_t v_s)/(α_s v_t)."""
    errors = []
    ends = float(SCHEDULE.log_snr[-1]), float(SCHEDULE.log_snr[0])
    for num_steps in (2000, 4000):
        path = ideal_of(EulerMaruyama(), through(SCHEDULE, torch.linspace(*ends, num_steps, dtype=torch.float64)))
        v_t, v_s = path.forward_var_t[0], path.forward_var_s[-2]
        r = SCHEDULE.alpha[-1] * v_s / (SCHEDULE.alpha[0] * v_t)
        exact = r**2 + v_s - r**2 * v_t
        errors.append(float((path.var_s[-2] / exact - 1).abs().max()))
    assert errors[1] < 0.005
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)


def test_a_step_left_to_be_found_is_the_one_whose_ideal_ends_closest():
    grid = LogSNRGrid().levels(EXPLODING, 40)

    def loss(sampler: Sampler) -> float:
        return end_kl(ideal_of(sampler, grid))

    for sampler in (AnnealedLangevin(step="auto"), PredictorCorrector(step="auto")):
        found = sampler.fitted(loss)
        assert sampler.step == "auto"
        assert 0 < found.step <= 1
        kind = type(sampler)
        assert loss(found) <= 1.02 * min(loss(kind(step=step)) for step in (0.01, 0.03, 0.1, 0.3, 0.6, 1.0))
        with refused(rf"step of {kind.__name__} is 'auto'.*give data, or a number such as 0\.1"):
            sampler.program(grid)
    assert DDIM().fitted(loss).in_words == "ddim"


@pytest.mark.parametrize(
    "sampler", [DPMSolver(order=3), UniPC(), Heun(), DPMSolver(sde=True)], ids=lambda s: s.in_words
)
def test_nothing_is_kept_from_one_run_to_the_next_and_a_later_start_has_no_history(sampler: Sampler):
    grid = LogSNRGrid().levels(SCHEDULE, 20)
    program = sampler.program(grid)
    z = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def network(z, timestep):
        return torch.tanh(z) * (1 - timestep / 4000)

    def run(program):
        noise = torch.Generator().manual_seed(1)
        draws = [torch.randn(3, 6, generator=noise, dtype=torch.float64) for _ in range(20)]
        return [step.z_s for step in sampling_steps(told(network), z, program, SCHEDULE.prediction, draws.__getitem__)]

    first, again = run(program), run(program)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert program == sampler.program(grid)
    later = sampler.program(grid.after(5))
    assert len(run(later)) == 15
    one_step = DDIM(eta=1.0) if sampler.in_words == "dpmpp-2m-sde" else DDIM()
    if sampler.name != "heun":
        torch.testing.assert_close(run(later)[0], run(one_step.program(grid.after(5)))[0], **FLOAT64)


@pytest.mark.parametrize(
    ("sampler", "at_most"), [(DPMSolver(), 3e-3), (DPMSolver(order=3), 3e-3), (UniPC(), 3e-3), (DDIM(), 0.1)]
)
def test_ten_steps_of_a_multistep_method_on_even_log_snr_end_closer_than_fifty_of_ddim(sampler, at_most: float):
    few = end_kl(ideal_of(sampler, LogSNRGrid().levels(SCHEDULE, 10)))
    many = end_kl(ideal_of(DDIM(), ScheduleGrid("trailing").levels(SCHEDULE, 50)))
    assert few < at_most
    assert (few < many) == (sampler.name != "ddim")


@pytest.mark.parametrize("name", [name for name in by_name(Sampler) if name != "annealed-langevin"])
def test_float32_follows_float64(name: str):
    sampler, grid = by_name(Sampler)[name](), LogSNRGrid().levels(SCHEDULE, 20)
    program = sampler.program(grid)
    levels = {each.model_time: (each.alpha, each.sigma) for step in program for each in step.questions}
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(500, 5, 6, generator=generator, dtype=torch.float64)

    def run(dtype):
        def exact(z, told):
            alpha, sigma = levels[told]
            return (sigma * (z.double() - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)).to(dtype)

        def noise(k):
            return draws[k].to(dtype)

        path = sampling_steps(told(exact), draws[-1].to(dtype), program, SCHEDULE.prediction, noise)
        return torch.stack([step.z_s.double() for step in path])

    double = run(torch.float64)
    assert float((run(torch.float32) - double).abs().max()) < 1e-5 * max(1.0, float(double.abs().max()))
