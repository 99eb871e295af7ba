"""A picture beside z_t: a conditioning written outside the package, on Gaussian images."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import ldmprobe
from ldmprobe import Conditioning, HeldOutRows, load_model
from ldmprobe.callbacks import DDIMProbe, DenoisingProbe
from ldmprobe.models.denoiser import as_denoiser, check_denoiser
from tests.helpers import FLOAT32, refused, sd_scheduler, tiny_unet
from tests.models.gaussian_images import SIZE, images
from tests.training.test_latent_diffusion import trainer as quiet_trainer

KNOWN = torch.arange(SIZE) < SIZE // 2  # columns


class LeftHalf(Conditioning):
    """The left half of the image, and a channel that says where there is one; those of a probe's samples are of held-out
    rows."""

    columns = ("image",)

    def __init__(self, num_rows: int = 64, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.rows = HeldOutRows(self.columns, num_rows)

    def for_samples(self, sample_ids):
        return self.from_batch(self.rows.batch(sample_ids))

    def null(self, num_samples, device):
        return {"concat": torch.zeros(num_samples, 2, SIZE, SIZE, device=device)}

    def prepare(self, network, data, codec):
        super().prepare(network, data, codec)
        self.rows.choose(data)

    def from_batch(self, batch):
        self.check_columns(batch)
        known = KNOWN.to(batch["image"]).expand_as(batch["image"][:, :1])
        return {"concat": torch.cat([batch["image"] * known, known], dim=1)}

    @property
    def spec(self):
        return {"num_rows": self.rows.num_rows}

    @property
    def description(self):
        return {"rows": self.rows.description}


def unet() -> nn.Module:
    torch.manual_seed(0)
    return tiny_unet(channels=1, in_channels=3)


def fit(folder, max_steps: int):
    module = ldmprobe.LatentDiffusion(
        unet(),
        scheduler=sd_scheduler(),
        conditioning=LeftHalf(dropout=0.2),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
        ema_decay=0.9,
        validation_timesteps=1,
    )
    callbacks = [
        DDIMProbe(every_n_steps=max_steps, num_samples=32, num_steps=4, guidance=2.0),
        DenoisingProbe(every_n_steps=max_steps, num_images=32, num_draws=64),
    ]
    trainer = quiet_trainer(folder, max_steps, limit_val_batches=0, callbacks=callbacks)
    trainer.fit(module, images())
    return trainer, module


def errors(model: ldmprobe.DiffusionModel, swapped: bool) -> Tensor:
    """Squared error of each held-out image at one noise level, with its own condition or its neighbor's."""
    data = images()
    data.setup()
    (batch,) = data.reference_batches(64, held_out=True)
    x = batch["image"]
    epsilon = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    condition = model.conditioning.from_batch({"image": x.roll(1, 0) if swapped else x})
    t = torch.full((len(x),), 600)
    alpha, sigma = float(model.schedule.alpha[600]), float(model.schedule.sigma[600])
    with torch.no_grad():
        return (model.predict(alpha * x + sigma * epsilon, t, condition) - epsilon).square().flatten(1).mean(1)


def test_it_is_trained_with_probed_with_guidance_and_read_from_its_checkpoint(tmp_path):
    trainer, module = fit(tmp_path, 150)
    difference = errors(module.diffusion_model(), swapped=True) - errors(module.diffusion_model(), swapped=False)
    assert difference.mean() > 5 * difference.std() / len(difference) ** 0.5  # the condition is used
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = load_model(str(tmp_path / "model.ckpt"), "cpu")
    ids = torch.arange(80)
    expected = module.conditioning.for_samples(ids)["concat"]
    assert torch.equal(loaded.conditioning.for_samples(ids)["concat"], expected)
    kept = len(module.conditioning.rows.image)
    assert kept == 40 and len(expected[:kept].flatten(1).unique(dim=0)) == kept  # noqa: PT018 (one fact)
    assert loaded.conditioning.description == module.conditioning.description
    torch.testing.assert_close(errors(loaded, False), errors(module.diffusion_model(), False), **FLOAT32)


# --- refused ---------------------------------------------------------------------------------------------------------


def test_plain_modules_get_latents_and_picture_as_one():
    class Shape(nn.Module):
        def forward(self, z_t, t, condition):
            return torch.full_like(z_t[:, :1], z_t.shape[1] + 10 * len(condition))

    z, picture = torch.zeros(2, 1, 4, 4), torch.ones(2, 3, 4, 4)
    answer = as_denoiser(Shape())(z, torch.zeros(2), {"concat": picture, "class_labels": torch.zeros(2)})
    assert (answer == 14).all()


@pytest.mark.parametrize(
    ("network", "picture", "message"),
    [
        (unet, (1, 8, 8), "UNet2DModel has in_channels 3; expected 2: 1 of the latents and 1 of the conditioning's concat"),
        (unet, (2, 4, 8), r"concat has shape \(2, 4, 8\), the latents \(1, 8, 8\); expected the same height and width"),
        (partial(tiny_unet, channels=3), (2, 8, 8), r"with \(3, 8, 8\); .* Make its in_channels 3, its out_channels 1"),
    ],
)  # fmt: skip
def test_a_picture_that_does_not_fit_is_refused_early(network, picture, message):
    with refused(message):
        check_denoiser(network(), (1, 8, 8), {"concat": torch.zeros(1, *picture)}, torch.device("cpu"))


def test_a_checkpoint_of_a_class_that_was_not_imported_says_so():
    with refused("the conditioning Unheard, a class of your own; read it from Python"):
        ldmprobe.models.conditioning.conditioning_of({"class_name": "Unheard"}, nn.Identity())
