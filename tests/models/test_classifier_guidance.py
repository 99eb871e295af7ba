"""Classifier guidance of a mixture of Gaussians, whose class posterior and denoisers are known."""

import math

import pytest
import torch
from torch import Tensor, nn

from ldmprobe import (
    ClassConditioning,
    ClassifierGuidance,
    ClassifierModel,
    DiffusionModel,
    LowResolution,
    NoiseSchedule,
    NoisyClassifier,
    Sampling,
)
from ldmprobe.diffusion.prediction import KINDS
from ldmprobe.diffusion.samplers import Denoise
from ldmprobe.probing.sampling_probe import probe_sampling
from tests.helpers import FLOAT32, refused
from tests.models.test_measurement import PROCESSES
from tests.own_parts import TwiceTheNoise

SHAPE, CLASSES, VARIANCE = (2, 2, 2), 3, 0.3
MEANS = torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def log_likelihoods(z: Tensor, alpha: float, sigma: float) -> Tensor:
    """ln p(z | y) of each class (N, K), but for what all classes have alike."""
    distance = (z[:, None].double() - alpha * MEANS).flatten(2).square().sum(2)
    return -distance / (2 * (alpha**2 * VARIANCE + sigma**2))


class ExactClassifier(nn.Module):
    """Bayes' rule, on latents of variance about 1."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))

    def forward(self, z, log_snr):
        alpha, sigma = (math.sqrt(1 / (1 + math.exp(-sign * float(log_snr[0])))) for sign in (1, -1))
        return log_likelihoods(z, alpha, sigma)


class Exact(nn.Module):
    """The best denoiser of the mixture, or of one class; it is told the number of the level."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule, self.place = schedule, nn.Parameter(torch.zeros(1))

    def forward(self, z_t, t, condition):
        alpha, sigma = float(self.schedule.alpha[int(t[0])]), float(self.schedule.sigma[int(t[0])])
        z = z_t.double()
        of_class = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (z[:, None] - alpha * MEANS) + MEANS
        share = log_likelihoods(z, alpha, sigma).softmax(1)
        if condition:
            share = nn.functional.one_hot(condition["class_labels"], CLASSES).double()
        x0 = torch.einsum("nk,nkchw->nchw", share, of_class)
        return self.schedule.prediction.target(x0, (z - alpha * x0) / sigma, alpha, sigma).to(z_t)


EXACT = ClassifierModel(ExactClassifier(), CLASSES, {})


def model(process: str = "vp", kind: str = "epsilon") -> DiffusionModel:
    prediction = TwiceTheNoise() if kind == "own" else KINDS[kind]
    schedule = NoiseSchedule(*PROCESSES[process], prediction, torch.arange(50))
    return DiffusionModel(Exact(schedule), schedule, SHAPE, conditioning=ClassConditioning(CLASSES))


@pytest.mark.parametrize(
    ("process", "kind"),
    [("vp", "epsilon"), ("vp", "sample"), ("vp", "v_prediction"), ("vp", "own"), ("ve", "epsilon"), ("flow", "flow")],
)
def test_bayes_rule_makes_the_conditional_of_the_unconditional(process, kind):
    """Whatever is predicted, at every level, for each sample's own class and in any batch."""
    exact, ids = model(process, kind), torch.arange(6)
    z = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1))
    asked, labels = exact.schedule, {"class_labels": ids % CLASSES}
    for k in (0, 20, 35, 49):
        question = Denoise(float(asked.alpha[k]), float(asked.sigma[k]), float(k))
        z_t = z * math.hypot(question.alpha, question.sigma)
        expected = exact.predictor(labels, 6)(z_t, question)
        plain = exact.predictor({}, 6)(z_t, question)
        guided = exact.predictor({}, 4, ClassifierGuidance(EXACT), sample_ids=ids)(z_t, question)
        torch.testing.assert_close(guided, expected, **FLOAT32)
        nothing = exact.predictor({}, 4, ClassifierGuidance(EXACT, 0.0), sample_ids=ids)(z_t, question)
        assert torch.equal(nothing, plain)
        twice = exact.predictor({}, 4, ClassifierGuidance(EXACT, 2.0), sample_ids=ids)(z_t, question)
        torch.testing.assert_close(twice - plain, 2 * (expected - plain), rtol=1e-4, atol=1e-5)


def test_samples_are_of_the_class_that_the_model_is_told_or_that_is_asked_for():
    exact, ids, question = model(), torch.arange(4), Denoise(*(float(level[25]) for level in PROCESSES["vp"]), 25.0)
    z = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    of_two = exact.predictor({}, 4, ClassifierGuidance(EXACT, classes=[2]), sample_ids=ids)(z, question)
    torch.testing.assert_close(of_two, exact.predictor({"class_labels": ids * 0 + 2}, 4)(z, question), **FLOAT32)
    told = {"class_labels": torch.tensor([1, 1, 0, 0])}
    both = exact.predictor(told, 4, ClassifierGuidance(EXACT), sample_ids=ids)(z, question)
    expected = exact.predictor(told, 4)(z, question)
    assert float((both - expected).abs().max()) > 0.01
    assert ClassifierGuidance(EXACT, classes=[2]).provenance != ClassifierGuidance(EXACT).provenance


class OfALevel(LowResolution):
    """Tells the level of noise of a small image, and nothing else."""

    ready = True

    def for_samples(self, sample_ids):
        return {"class_labels": torch.full_like(sample_ids, self.sampling_level)}


def test_a_level_of_noise_is_not_taken_for_a_class():
    exact, ids, question = model(), torch.arange(4), Denoise(*(float(level[25]) for level in PROCESSES["vp"]), 25.0)
    exact.network.forward = lambda z_t, t, condition: Exact.forward(exact.network, z_t, t, {})  # an upsampler's
    exact.conditioning = OfALevel(2, noise_levels=9, sampling_level=1)
    z, told = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1)), exact.conditioning.for_samples(ids)
    guidance = ClassifierGuidance(EXACT)
    guided = exact.predictor(told, 4, guidance, sample_ids=ids)(z, question)
    expected = model().predictor({"class_labels": ids % CLASSES}, 4)(z, question)
    torch.testing.assert_close(guided, expected, **FLOAT32)
    exact.conditioning = OfALevel(2, noise_levels=9, sampling_level=9)
    guidance.check(exact)
    assert "sample_labels" not in probe_sampling(exact, None, Sampling(8, 2), analyses=[]).provenance
    labels = probe_sampling(model(), None, Sampling(8, 2), analyses=[]).provenance["sample_labels"]
    assert labels == [i % CLASSES for i in range(8)]


def test_what_does_not_fit_is_refused(tmp_path):
    with refused("scale nan"):
        ClassifierGuidance(EXACT, math.nan)
    with refused(r"classes \[3\]; expected labels 0 to 2"):
        ClassifierGuidance(EXACT, classes=[3])
    other = ClassifierModel(ExactClassifier(), CLASSES, {**model().codec.description, "scale": "2.0000e+00"})
    with refused("other latents than this model's: its codec.scale is 2.0000e"):
        ClassifierGuidance(other).check(model())
    with refused("told class 2 and the classifier knows 2"):
        ClassifierGuidance(ClassifierModel(ExactClassifier(), 2, {})).check(model())
    (tmp_path / "other.ckpt").write_bytes(b"nothing")
    with refused("not a readable checkpoint"):
        ClassifierModel.load(tmp_path / "other.ckpt")
    torch.save({"ldmprobe": {"network": {}}}, tmp_path / "other.ckpt")
    with refused("holds no classifier of noisy latents"):
        ClassifierModel.load(tmp_path / "other.ckpt")


def test_the_network_mixes_no_samples_and_depends_on_the_level():
    torch.manual_seed(0)
    network = NoisyClassifier(2, 5, (8, 8), norm_num_groups=4, attention_head_dim=4).eval()
    z, levels = torch.randn(3, 2, 8, 8), torch.tensor([-6.0, 0.0, 6.0])
    logits = network(z, levels)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(logits[1:2], network(z[1:2], levels[1:2]), **FLOAT32)
    assert float((network(z, levels.flip(0)) - logits).detach()[0].abs().max()) > 1e-3
    for settings in (
        {"num_classes": 1},
        {"down_block_types": ("Nonsense", "DownBlock2D")},
        {"norm_num_groups": 3},
        {"attention_head_dim": 5},
    ):
        with refused("NoisyClassifier"):
            NoisyClassifier(**{"channels": 2, "num_classes": 5, **settings})
