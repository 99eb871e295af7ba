"""Guidance by a measurement, beside the exact posterior of Gaussian images and a linear system that is solved whole."""

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import ExifTags, Image
from torch import Tensor, nn

import ldmprobe
from ldmprobe import BlockMeans, DiffusionModel, KnownPixels, MeasurementGuidance, NoiseSchedule, Sampling
from ldmprobe.callbacks import DDIMProbe
from ldmprobe.diffusion.prediction import KINDS, Prediction
from ldmprobe.diffusion.samplers import Denoise
from ldmprobe.models.guidance import Asked
from ldmprobe.probing.analyses.samples import SampleImages
from tests.helpers import refused, tiny_unet
from tests.own_parts import TwiceTheNoise
from tests.pipelines import autoencoder
from tests.training.test_latent_diffusion import trainer

SIZE, NOISE = 4, 0.1
EYE = torch.eye(SIZE**2, dtype=torch.float64)
MEAN = torch.linspace(-1, 1, SIZE**2, dtype=torch.float64)
PLACES = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE)).double()
COVARIANCE = torch.exp(-torch.cdist(PLACES, PLACES))
HOLES = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]]).view(2, 1, 1, SIZE).expand(2, 1, SIZE, SIZE)
LOG_SNR = torch.linspace(8, -8, 50, dtype=torch.float64)
PROCESSES = {
    "vp": (LOG_SNR.sigmoid().sqrt(), (-LOG_SNR).sigmoid().sqrt()),
    "ve": (torch.ones(50, dtype=torch.float64), (-LOG_SNR / 2).exp()),
    "flow": ((LOG_SNR / 2).sigmoid(), (-LOG_SNR / 2).sigmoid()),
}


def denoised(z_t: Tensor, mean: Tensor, covariance: Tensor, level: tuple[float, float], kind: Prediction) -> Tensor:
    """The best answer for data N(mean, covariance)."""
    alpha, sigma = level
    z = z_t.flatten(1).double()
    x0 = mean + (z - alpha * mean) @ (alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * EYE)).T
    return kind.target(x0, (z - alpha * x0) / sigma, alpha, sigma).view_as(z_t).to(z_t)


class Exact(nn.Module):
    """The best denoiser of Gaussian images; it is told the number of the level."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule, self.place = schedule, nn.Parameter(torch.zeros(1))

    def forward(self, z_t, t):
        level = float(self.schedule.alpha[int(t[0])]), float(self.schedule.sigma[int(t[0])])
        return denoised(z_t, MEAN, COVARIANCE, level, self.schedule.prediction)


@pytest.mark.parametrize("operator", [KnownPixels.outside(HOLES), BlockMeans(2)], ids=["holes", "means"])
@pytest.mark.parametrize(
    ("process", "kind"),
    [("vp", "epsilon"), ("vp", "sample"), ("vp", "v_prediction"), ("vp", "own"), ("ve", "epsilon"), ("flow", "flow")],
)
def test_mmps_is_exact_for_gaussian_images(process, kind, operator):
    """Whatever the network answers, the process and the level, for each sample's own measurement and in any batch."""
    schedule = NoiseSchedule(*PROCESSES[process], KINDS.get(kind) or TwiceTheNoise())
    model = DiffusionModel(Exact(schedule), schedule, (1, SIZE, SIZE))
    x = torch.randn(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    z_t = 2 * torch.randn(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    guidance = MeasurementGuidance(operator, NOISE, ldmprobe.MMPS(SIZE**2), operator.apply(x, [0, 1]))
    for t in (2, 25, 40):
        alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
        predict = model.predictor({}, 3, guidance, torch.tensor([0, 1, 2, 5]))
        with torch.no_grad():
            found = predict(z_t, Denoise(alpha, sigma, t))
        for i, row in enumerate((0, 1, 0, 1)):
            a = operator.apply(EYE.view(-1, 1, SIZE, SIZE), [row] * SIZE**2).flatten(1).T
            gain = COVARIANCE @ a.T @ torch.linalg.inv(a @ COVARIANCE @ a.T + NOISE**2 * torch.eye(len(a)))
            mean = MEAN + gain @ (operator.apply(x, [0, 1])[row].flatten().double() - a @ MEAN)
            rest = COVARIANCE - gain @ a @ COVARIANCE
            expected = denoised(z_t[i : i + 1], mean, rest, (alpha, sigma), schedule.prediction)
            torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("operator", [KnownPixels(), KnownPixels.outside(HOLES), BlockMeans(2)])
def test_an_operator_has_the_transpose_and_inverse_that_it_says(operator):
    x = torch.randn(3, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    rows = [0, 1, 7]
    y = operator.apply(x, rows)
    u = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close((y * u).flatten(1).sum(1), (x * operator.transpose(u, rows)).flatten(1).sum(1))
    torch.testing.assert_close(operator.apply(operator.inverse(u, rows), rows), operator.restricted(u, rows))


def test_what_an_autoencoder_makes_is_measured_through_its_derivative():
    torch.manual_seed(0)
    codec = ldmprobe.LatentCodec(autoencoder(scaling_factor=0.5))
    network = tiny_unet(2, 4)
    schedule = NoiseSchedule(*PROCESSES["vp"], KINDS["v_prediction"])
    model = DiffusionModel(network, schedule, (2, 4, 4), codec)
    operator, z_t, t = BlockMeans(4), torch.randn(1, 2, 4, 4), torch.tensor([25])
    alpha, sigma = float(schedule.alpha[25]), float(schedule.sigma[25])

    def x0(z: Tensor) -> Tensor:
        answer = model.predict(z.view(1, 2, 4, 4), t, {})
        return schedule.prediction.x0_and_epsilon(answer, z.view(1, 2, 4, 4), alpha, sigma)[0].flatten()

    def measured(latents: Tensor) -> Tensor:
        return operator.apply(codec.differentiable(latents.view(1, 2, 4, 4)), [0]).flatten()

    flat = z_t.flatten()
    y = torch.randn(1, *operator.apply(codec.decode(z_t), [0]).shape[1:])
    jacobian = torch.autograd.functional.jacobian(x0, flat)
    a = torch.autograd.functional.jacobian(measured, x0(flat).detach())
    gain = sigma**2 / alpha * jacobian.T @ a.T
    left = torch.linalg.solve(a @ gain + NOISE**2 * torch.eye(len(a)), y.flatten() - measured(x0(flat).detach()))
    guidance = MeasurementGuidance(operator, NOISE, ldmprobe.MMPS(len(a)), y)
    with torch.no_grad():
        found = model.predictor({}, 1, guidance, torch.tensor([0]))(z_t, Denoise(alpha, sigma, 25.0))
    guided, _ = schedule.prediction.x0_and_epsilon(found, z_t, alpha, sigma)
    torch.testing.assert_close(guided.flatten(), (x0(flat) + gain @ left).detach(), rtol=1e-3, atol=1e-4)
    with refused("replacement puts pixels in the place of others, and the model has an autoencoder"):
        MeasurementGuidance(operator, method=ldmprobe.Replacement()).check(model)


def test_simpler_methods_replace_or_go_down_the_slope():
    schedule = NoiseSchedule(*PROCESSES["vp"], KINDS["sample"])
    model = DiffusionModel(Exact(schedule), schedule, (1, SIZE, SIZE))
    operator, z_t = KnownPixels.outside(HOLES), torch.randn(2, 1, SIZE, SIZE)
    y, asked = torch.rand(2, 1, SIZE, SIZE), Asked(torch.tensor([20, 20]), *(float(x[20]) for x in PROCESSES["vp"]))

    def distances(method: ldmprobe.MeasurementMethod | None) -> Tensor:
        guidance = None if method is None else MeasurementGuidance(operator, method=method, y=y)
        with torch.no_grad():
            question = Denoise(asked.alpha, asked.sigma, 20.0)
            x0 = model.predictor({}, 2, guidance, torch.arange(2))(z_t, question)
        return operator.restricted(y - x0, [0, 1]).flatten(1).norm(dim=1)

    assert (distances(ldmprobe.Replacement()) < 1e-5).all()
    assert (distances(ldmprobe.DPS(0.05)) < distances(None) - 0.005).all()
    unmeasured = MeasurementGuidance(operator)
    with refused("MeasurementGuidance has no measurement; give `y`"):
        model.predictor({}, 2, unmeasured, torch.arange(2))(z_t, Denoise(0.6, 0.8, 20.0))


def test_what_does_not_go_together_is_refused():
    schedule = NoiseSchedule(*PROCESSES["vp"], KINDS["sample"])
    model = DiffusionModel(Exact(schedule), schedule, (1, SIZE, SIZE))
    for guidance, told in (
        (MeasurementGuidance(BlockMeans(3)), "factor 3, and the model's images are 4×4"),
        (MeasurementGuidance(BlockMeans(2), y=torch.zeros(1, 1, 4, 4)), r"y of shape \(1, 1, 4, 4\); expected \(K, 1, 2, 2\)"),
        (MeasurementGuidance(KnownPixels.outside(torch.ones(1, 1, 8, 8))), "The hole is 8×8, and the model's images are 4×4"),
        (MeasurementGuidance(KnownPixels.outside(torch.zeros(1, 1, 4, 4))), "The hole is empty"),
        (MeasurementGuidance(KnownPixels.outside(torch.ones(1, 1, 4, 4))), "The hole is all of the image"),
    ):  # fmt: skip
        with refused(told):
            Sampling(guidance=guidance).levels(model)
    with refused("hole missing.png cannot be read"):
        KnownPixels("missing.png")


def test_a_hole_is_upright_and_neither_transparent_nor_a_jpeg():
    hole = np.zeros((4, 6), np.uint8)
    hole[0, :2] = 255
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # to be seen, it is turned by 90 degrees clockwise
    Image.fromarray(hole).save("turned.png", exif=turned)
    (seen,) = KnownPixels("turned.png").holes(torch.zeros(1, 3, 6, 4), [0])[:, 0]
    assert seen.tolist() == (np.rot90(hole, -1) != 0).tolist()
    for name, alpha in (("box", hole), ("opaque", np.full_like(hole, 255))):
        Image.fromarray(np.dstack([hole, hole, hole, alpha])).save(f"{name}.png")
    with refused("hole box.png is transparent in places.* black where the image is known, and white"):
        KnownPixels("box.png")
    Image.fromarray(hole).save("specks.jpg")
    with refused("hole specks.jpg is a JPEG.* give a PNG, in which what is above 127 is white"):
        KnownPixels("specks.jpg")
    assert KnownPixels("opaque.png").holes(torch.zeros(1, 3, 4, 6), [0])[0, 0].tolist() == (hole != 0).tolist()


def test_a_probe_measures_held_out_images_as_a_configuration_says(tmp_path):
    parser = ArgumentParser()
    parser.add_subclass_arguments(DDIMProbe, "probe")
    settings = {
        "num_samples": 8,
        "num_steps": 2,
        "analyses": [{"class_path": "ldmprobe.SampleImages"}],
        "guidance": {
            "class_path": "ldmprobe.MeasurementGuidance",
            "init_args": {"operator": {"class_path": "ldmprobe.BlockMeans", "init_args": {"factor": 2}}, "num_rows": 3},
        },
    }
    given = {"probe": {"class_path": "ldmprobe.callbacks.DDIMProbe", "init_args": settings}}
    probe = parser.instantiate_classes(parser.parse_object(given)).probe
    assert isinstance(probe.analyses[0], SampleImages)
    data = ldmprobe.ImageData("builtin:shapes", {"num_images": 16, "size": 8}, batch_size=4, held_out_fraction=0.25)
    module = ldmprobe.LatentDiffusion(tiny_unet(3, 8))
    trainer(tmp_path, 1, limit_val_batches=0, callbacks=[probe]).fit(module, data)
    images = torch.cat([batch["image"] for batch in data.reference_images(3, held_out=True)])
    assert len(probe.sampling.guidance.y) == 3
    error = probe.sampling.guidance.y - BlockMeans(2).apply(images, range(3))
    assert 0.02 < float(error.std()) < 0.1  # the noise, 0.05
    record = ldmprobe.RecordStore(tmp_path).at("ddim", 1)
    assert record.provenance["measurement"] == "block means, factor 2"
    assert "held-out image itself" in record.provenance["notes"]["samples"]
