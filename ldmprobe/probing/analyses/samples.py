"""SampleImages: the images that the sampled latents decode to, between what they were asked for and the truth."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor

from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.errors import check_numbers
from ldmprobe.io.metric import Metric
from ldmprobe.models.pixels import as_bytes
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory


class SampleImages(Analysis):
    """The first samples, decoded, as PNG: images ``samples``. Where conditions or measurements are pictures, each is a
    row of condition, sample and truth.

    Args:
        num_images: how many.
    """

    metrics = (
        Metric(
            "samples", "Samples over training",
            "The same starting noise and condition at every probe; move the slider to see what each sample becomes as"
            " the model trains.",
            shown="headline",
        ),
    )  # fmt: skip

    def __init__(self, num_images: int = 20) -> None:
        check_numbers("SampleImages", 1, num_images=num_images)
        self.num_images = num_images

    def begin(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.final: Tensor | None = None

    def update(self, step: SamplingStep) -> None:
        if step.index == self.trajectory.grid.num_steps - 1:
            self.final = step.z_s

    def finish(self) -> Findings:
        t = self.trajectory
        number = min(self.num_images, t.num_samples)
        mine = t.sample_ids < number
        assert self.final is not None
        chosen = self.final[mine.to(self.final.device)]
        # A rank with no chosen sample decodes a zero anyway, to know the shape of an image.
        decoded = t.model.codec.decode(chosen if len(chosen) else chosen.new_zeros(1, *chosen.shape[1:]))
        images = t.ranks.gather_rows(decoded, t.sample_ids[mine], number)
        ids = torch.arange(number)
        shown = t.sampling.guidance.shown(ids) or t.model.conditioning.shown(ids)
        if shown is None:
            return Findings(images={"samples": [png_bytes(image) for image in images]})
        rows = zip(shown.condition.cpu(), images.cpu(), shown.truth.cpu(), strict=True)
        note = "Each picture shows from left to right the condition, the sample, and the held-out image itself."
        return Findings(
            images={"samples": [png_bytes(side_by_side(row)) for row in rows]}, provenance={"notes": {"samples": note}}
        )


def side_by_side(images: Sequence[Tensor]) -> Tensor:
    """Return images (C, H, W) as one, with a white line between them; gray ones become colored beside others."""
    channels = max(len(image) for image in images)
    line = torch.ones(channels, images[0].shape[1], max(1, images[0].shape[1] // 32))
    parts = [part for image in images for part in (image.expand(channels, -1, -1) if len(image) == 1 else image, line)]
    return torch.cat(parts[:-1], dim=2)


def png_bytes(image: Tensor) -> bytes:
    """An image (C, H, W) in [−1, 1] as PNG; the first of two or more than four channels is shown in gray."""
    from PIL import Image

    array = as_bytes(image.detach().cpu()).numpy()
    picture = Image.fromarray(array.transpose(1, 2, 0)) if len(array) in (3, 4) else Image.fromarray(array[0])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
