"""Models loaded and sampled without Lightning, and real latents or images to compare them with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.errors import ConfigurationError
from ldmprobe.features.choose import named_network
from ldmprobe.io.digest import fingerprint
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.models.conditioning import SMALL, OfRows, with_assumed_columns
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.pixels import as_bytes
from ldmprobe.probing.analyses import Analysis, Findings, Trajectory
from ldmprobe.probing.clipping import clipping, count_clipped
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics, encode_images
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.real_features import check_feature_network
from ldmprobe.probing.reconstruction import Originals
from ldmprobe.probing.sampling import Sampling, sample_trajectory

if TYPE_CHECKING:
    from ldmprobe.data.columns import Column
    from ldmprobe.data.images import ImageData
    from ldmprobe.data.in_order import GivenRows
    from ldmprobe.data.rows import RowReader


@torch.no_grad()
def sample_images(model: DiffusionModel, sampling: Sampling) -> Tensor:
    """Return decoded samples (N, C, H, W), about [−1, 1]; sample i is the same as a probe's.

    Raises:
        ConfigurationError: a number of steps out of range, nothing to guide by, or predictions that are not finite.
    """
    grid = sampling.levels(model)
    images = []
    clipped = torch.zeros(2, dtype=torch.float64, device=model.device)
    with evaluating(model.modules):
        for ids in torch.arange(sampling.num_samples).split(sampling.batch_size):
            for step in sample_trajectory(model, sampling, grid, ids):
                _check_finite(step)
            images.append(model.codec.decode(step.z_s).cpu())
            if grid.clip_range is not None:
                clipped += count_clipped(step.x0, grid.clip_range)
    clipping(model, grid.clip_range, clipped)
    return torch.cat(images)


class OnlyFinite(Analysis):
    """Finds nothing, but ends a probe whose latents are not finite: of a model looked at once no record has gaps."""

    def begin(self, trajectory: Trajectory) -> None: ...

    def update(self, step: SamplingStep) -> None:
        _check_finite(step)

    def finish(self) -> Findings:
        return Findings()


def _check_finite(step: SamplingStep) -> None:
    if not bool(step.z_s.isfinite().all()):
        raise ConfigurationError(
            f"The model's predictions are not finite at t={round(float(step.timestep))}: NaN or Inf in its weights, or "
            "too large a guidance scale."
        )


def image_grid(images: Tensor, columns: int, gap: int = 2) -> np.ndarray:
    """Images (N, C, H, W) in [−1, 1] side by side: uint8 array (rows, columns[, 3])."""
    pixels = as_bytes(images)
    pixels = pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1]
    n, channels, height, width = pixels.shape
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    grid = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        grid[:, top : top + height, left : left + width] = image
    return grid.permute(1, 2, 0).squeeze(2).numpy()


@dataclass(frozen=True)
class RealLatents:
    """A dataset's images as a model is probed with them, encoded by its codec.

    Attributes:
        reference: of training images.
        held_out: held-out images, with their conditions.
        model, data: whose they are.
    """

    reference: LatentStatistics
    held_out: HeldOut
    model: DiffusionModel
    data: ImageData

    def training(self, num_images: int) -> HeldOut:
        """Return so many training images, with their conditions, which the model is known to be trained on.

        Raises:
            ConfigurationError: it was trained on others; or it does not say, and held-out images may be among them.
        """
        model, data, theirs = self.model, self.data, self.model.trained_on
        if theirs and not data.identity.has_training_rows_of(theirs):
            raise ConfigurationError(
                f"As its checkpoint tells, the model was trained on {theirs['train']['rows']:,} rows that are not the "
                f"{len(data.identity.train.images):,} training rows of {data.dataset}; give the --data that it was "
                "trained with, divided as then."
            )
        if not theirs and data.held_out_reader.split == data.train_split:
            raise ConfigurationError(
                f"The model does not say which rows it was trained on, and {data.dataset} has no split of others; give "
                'data with a split "train", which it was trained on, and one called "test", which it was not.'
            )
        rows = with_assumed_columns(data, model.conditioning).reference_batches(num_images)
        with evaluating(model.modules):
            return HeldOut.encode(model.codec, model.conditioning, rows)


def real_latents(
    model: DiffusionModel,
    dataset: str,
    image_column: str = "image",
    label_column: str | None = None,
    image_size: int | None = None,
    num_reference: int = 4096,
    num_held_out: int = 512,
    caption_column: str | None = None,
    columns: Sequence[Column] = (),
) -> RealLatents:
    """A dataset's training images as reference, and its held-out images, both encoded by the model's codec. Samples of
    the model are told what rows of this dataset say from then on, not those of its checkpoint.

    Args:
        dataset, image_column, label_column, image_size: as ``ImageData``'s; the channels are the model's.
        caption_column: likewise. Without one all images have a text-to-image model's prompt, of which there must be but
            one.
        columns: further ones that the model's conditioning reads.

    Raises:
        ConfigurationError: no such data, or its latents are not shaped like the model's, or a class or text is missing.
    """
    from ldmprobe.data.images import ImageData

    data = ImageData(
        dataset,
        image_column=image_column,
        label_column=label_column,
        caption_column=caption_column,
        image_size=image_size,
        channels=model.codec.image_channels or model.latent_shape[0],
        columns=list(columns),
    )
    data.setup()
    if model.trained_on and (moved := data.identity.trained_on(model.trained_on)):
        warnings.warn(f"The model was trained on rows of {dataset} that are held out here ({moved}).", stacklevel=2)
    expected = model.codec.image_shape(model.latent_shape)
    if tuple(data.image_shape) != expected:
        raise ConfigurationError(
            f"The images of {dataset} have shape {tuple(data.image_shape)}, the model's {expected}; set --image-size "
            f"{expected[-1]}."
        )
    told = with_assumed_columns(data, model.conditioning)
    model.conditioning.forget_rows()
    model.conditioning.prepare(model.network, told, model.codec)
    with evaluating(model.modules):
        latents = encode_images(model.codec, (batch["image"] for batch in data.reference_batches(num_reference)))
        held_out = HeldOut.encode(model.codec, model.conditioning, told.reference_batches(num_held_out, held_out=True))
    return RealLatents(LatentStatistics.fit(latents, fingerprint(model.codec.description)), held_out, model, data)


def given_rows(
    model: DiffusionModel, dataset: str, image_column: str, columns: Sequence[Column], num_rows: int, batch_size: int
) -> GivenRows:
    """The first rows of a dataset, with images as large as the model's.

    Args:
        columns: all that the model's conditioning reads.

    Raises:
        ConfigurationError: no such data, or they are not what the model takes.
    """
    from ldmprobe.data.in_order import GivenRows

    return GivenRows.read(dataset, replace(_reader(model, image_column), others=tuple(columns)), num_rows, batch_size)


def told_rows(model: DiffusionModel, rows: GivenRows) -> OfRows:
    """Return the conditioning that tells sample i what row i mod K says.

    Raises:
        ConfigurationError: they are not what the model takes.
    """
    told = with_assumed_columns(rows, model.conditioning)
    with evaluating(model.modules):
        model.conditioning.prepare(model.network, told, model.codec)
        return OfRows(model.conditioning, told.reference_batches(len(rows.images)))


def told_small(model: DiffusionModel, images: Tensor) -> OfRows:
    """Return the conditioning that tells sample i the small image i mod K, as a cascade does, of images (K, C, h, w) in
    [−1, 1]. Whatever else the model is told of an image is made of them, too, interpolated.

    Raises:
        ConfigurationError: the model is told small images of another size, or what they do not say.
    """
    from ldmprobe.data.in_order import GivenRows

    size = model.codec.image_shape(model.latent_shape)[1:]
    whole = F.interpolate(images, size=size, mode="bicubic").clamp(-1, 1)
    conditioning = told_rows(model, GivenRows.of(whole, **{SMALL: images}))
    if (told := model.conditioning.small_size) and told != tuple(images.shape[2:]):
        raise ConfigurationError(
            f"The model is told small images of {told[0]}×{told[1]}, and those of --image become "
            f"{images.shape[2]}×{images.shape[3]}; give --enlarge {size[0] // told[0]}."
        )
    return conditioning


def given_images(model: DiffusionModel, files: Sequence[Path], times_smaller: int = 1) -> Tensor:
    """The images of these files, (N, C, H, W) in [−1, 1], as large as the model's, or so many times smaller.

    Raises:
        ConfigurationError: a file is not there, or no image.
    """
    reader, images = replace(_reader(model), unit="--image, number"), []
    reader = replace(reader, size=reader.size and reader.size // times_smaller)
    for i, path in enumerate(files):
        try:
            stored = path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}. Give an image file.") from error
        images.append(reader.read({reader.image.column: stored}, i)["image"])
    return torch.stack(images)


def _reader(model: DiffusionModel, image_column: str = "image") -> RowReader:
    """Return a reader of images as the model's are."""
    from ldmprobe.data.columns import ImageColumn
    from ldmprobe.data.rows import RowReader

    channels, height, width = model.codec.image_shape(model.latent_shape)
    return RowReader(ImageColumn(image_column, channels=channels), size=height if height == width else None)


def real_images(
    model: AutoencoderModel,
    dataset: str,
    image_column: str = "image",
    image_size: int | None = None,
    num_reference: int = 4096,
    num_held_out: int = 1000,
    feature_network: str | None = None,
) -> tuple[AutoencoderModel, nn.Module | None, Originals, list[Tensor]]:
    """A dataset's images as an autoencoder is probed with them: the autoencoder for images of their shape, the feature
    network, what is known of the originals, and the held-out images.

    Args:
        dataset, image_column, image_size: as ``ImageData``'s; the channels are the autoencoder's.
        feature_network: as SampleQuality's, or "none"; by default "builtin:digits" for gray images and
            "builtin:cifar10" for RGB.

    Raises:
        ConfigurationError: no such data, or the autoencoder or feature network does not take their images.
    """
    from ldmprobe.data.images import ImageData

    channels = int(model.network.config.in_channels)
    data = ImageData(dataset, image_column=image_column, image_size=image_size, channels=channels)
    data.setup()
    if model.trained_on and (moved := data.identity.trained_on(model.trained_on)):
        warnings.warn(f"The model was trained on rows of {dataset} that are held out here ({moved}).", stacklevel=2)
    model = replace(model, image_shape=tuple(data.image_shape))
    entries = math.prod(model.latent_shape)
    network = named_network(feature_network, channels)
    if network is not None:
        check_feature_network(network, model.image_shape, model.device)
    held_out = [batch["image"] for batch in data.reference_images(num_held_out, held_out=True)]
    training = (batch["image"] for batch in data.reference_images(num_reference))
    return model, network, Originals.of(training, held_out, entries, network, model.device), held_out
