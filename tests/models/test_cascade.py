"""A cascade: what the upsampler is told of the base's samples, from Python and by one command; and its gap."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ldmprobe
from ldmprobe import ClassConditioning, Conditions, LowResolution, Sampling, cascaded, probe_cascade, sample_images
from ldmprobe.cli import main
from ldmprobe.models.pixels import as_bytes, from_bytes
from ldmprobe.probing.quality import frechet_distance
from ldmprobe.probing.real_features import RealFeatures
from tests.helpers import refused, refuses, sd_scheduler, tiny_unet
from tests.training.test_latent_diffusion import trainer

SIZE, CLASSES = 16, 20


def trained(folder, conditioning: ldmprobe.Conditioning, channels: int, size: int) -> str:
    """A checkpoint of one step on images of 16 pixels, or made smaller."""
    torch.manual_seed(0)
    source = ldmprobe.ImageData(
        "builtin:shapes", {"num_images": 24, "size": SIZE}, image_size=size, label_column="label", batch_size=8
    )
    network = tiny_unet(3, size, in_channels=channels, num_class_embeds=CLASSES + 1)
    module = ldmprobe.LatentDiffusion(network, scheduler=sd_scheduler(), conditioning=conditioning, ema_decay=None)
    fit = trainer(folder, 1, limit_val_batches=0)
    fit.fit(module, source)
    fit.save_checkpoint(path := folder / f"{size}.ckpt")
    return str(path)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("cascade")
    told = Conditions([LowResolution(2, "bicubic"), ClassConditioning(CLASSES)])
    return [trained(folder, ClassConditioning(CLASSES), 3, SIZE // 2), trained(folder, told, 6, SIZE)]


def test_the_upsampler_is_told_the_bases_images_in_8_bits_and_their_classes(checkpoints):
    base, upsampler = (ldmprobe.load_model(path, "cpu") for path in checkpoints)
    small = 1.3 * torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.1
    told = cascaded(base, upsampler, small).conditioning.for_samples(torch.arange(30))
    as_file = from_bytes(as_bytes(small))
    expected = nn.functional.interpolate(as_file, size=(SIZE, SIZE), mode="bicubic")
    torch.testing.assert_close(told["concat"], expected)
    assert as_file.max() == 1
    assert not torch.equal(as_file, small.clamp(-1, 1))
    assert told["class_labels"].tolist() == [i % CLASSES for i in range(30)]
    labels = {"label": torch.tensor([7, 4]), "image": torch.zeros(2, 3, 8, 8), "index": torch.arange(2)}
    base.conditioning = ldmprobe.models.conditioning.OfRows(base.conditioning, [labels])  # of --data
    told = cascaded(base, upsampler, small[:3]).conditioning.for_samples(torch.arange(3))
    assert told["class_labels"].tolist() == [7, 4, 7]


def test_one_command_samples_both(checkpoints, capsys):
    base, upsampler = checkpoints
    few = ["--num-samples", "3", "--num-steps", "2", "--device", "cpu", "--guidance-scale", "2"]
    assert main(["sample", base, "--upsampler", upsampler, *few, "--out", "large.png"]) == 0
    models = [ldmprobe.load_model(path, "cpu") for path in checkpoints]
    small = sample_images(models[0], Sampling(3, 2, guidance=ldmprobe.ClassifierFreeGuidance(2.0)))
    large = sample_images(cascaded(*models, small), Sampling(3, 2))
    drawn = np.asarray(Image.open("large.png"))[:, :SIZE]
    assert np.array_equal(drawn, as_bytes(large)[0].permute(1, 2, 0).numpy())
    told = "The upsampler is told no small image (ClassConditioning)"
    refuses(capsys, ["sample", base, "--upsampler", base, *few, "--out", "none.png"], told)


def test_what_does_not_go_together_is_refused(checkpoints):
    base, upsampler = (ldmprobe.load_model(path, "cpu") for path in checkpoints)
    with refused(r"small images of shape \(3, 8, 8\), and the base makes \(3, 16, 16\)"):
        cascaded(upsampler, upsampler, torch.zeros(1, 3, 16, 16))
    base.conditioning = ldmprobe.Unconditional()
    with refused(r"The upsampler is told a label, too, and the base \(Unconditional\) none"):
        cascaded(base, upsampler, torch.zeros(1, 3, 8, 8))


class Means(nn.Module):
    """The mean of each channel."""

    def forward(self, images):
        return images.mean((2, 3))


def test_the_gap_is_the_difference_of_two_distances(checkpoints):
    base, upsampler = (ldmprobe.load_model(path, "cpu") for path in checkpoints)
    images = torch.rand(2, 12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    real, how = RealFeatures.of(Means(), [images[0]], torch.device("cpu")), Sampling(12, 2)
    of_base, of_real = (cascaded(base, upsampler, each[..., :8, :8]) for each in (-images[1], images[1]))
    found = probe_cascade(of_base, of_real, real, Means(), how).scalars
    fids = [
        frechet_distance(real.features, Means()(sample_images(each, how).clamp(-1, 1))) for each in (of_base, of_real)
    ]
    assert [found["fid_of_base_images"], found["fid_of_real_images"]] == pytest.approx(fids, rel=1e-3)
    assert found["cascade_gap"] == pytest.approx(fids[0] - fids[1], rel=1e-2)
    assert abs(found["cascade_gap"]) > 1e-3
    assert probe_cascade(of_real, of_real, real, Means(), how).scalars["cascade_gap"] == 0
