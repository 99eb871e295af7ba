"""Statistics of real latents: fitted once per run, kept on disk, and the yardstick of every probe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ldmprobe.analysis.basis import LatentBasis, Rotation
from ldmprobe.analysis.pca import PCABasis
from ldmprobe.analysis.spectrum import LinearOptimum
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.tensor_file import read_tensors, readable, write_tensors
from ldmprobe.models.codec import IMAGES, LatentCodec
from ldmprobe.models.pixels import checked_floats
from ldmprobe.types import Batch, PlainValues

_CLOUD = 512  # real latents whose projection is drawn behind the scatters
_QUANTILES, _SORTED_ENTRIES = 10_001, 4_000_000
_KEPT_ENTRIES = 2**24  # of latents, 64 MB


@dataclass(frozen=True)
class LatentStatistics:
    """Two bases fitted on the same real latents, and how these lie in them.

    Attributes:
        basis: decorrelating directions, real latents' moments along them and the spectrum behind these; for KL and
            closed forms.
        pca: the two leading principal components; for scatters.
        cloud: shape (M, 2), up to 512 real latents projected on ``pca``.
        num_latents: how many it was fitted on.
        codec: fingerprint of the codec that made them, if known.
        magnitudes: evenly spaced quantiles of their entries' magnitudes; empty of moments that are known.
        data: summary of the rows whose latents these are, where they are known (``KnownRows.summary``).
        latents: shape (K, C, H, W), the first of them, as many as have 2²⁴ entries; what ideals are made of. Empty of
            moments that are known.
        ideals: what was fitted for perfect denoisers of these latents, and their curves, kept from probe to probe; not
            on disk.
        ideal_errors: what ideals left of a denoising probe's draws, and the share of its latents that are among these,
            likewise (``probing/ideals.py``).
    """

    basis: LatentBasis
    pca: PCABasis
    cloud: Tensor
    num_latents: int
    codec: str = ""
    magnitudes: Tensor = field(default_factory=lambda: torch.empty(0))
    data: PlainValues = field(default_factory=dict)
    latents: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    ideals: dict[str, tuple[Tensor, ...]] = field(default_factory=dict, repr=False, compare=False)
    ideal_errors: dict[str, tuple[dict[str, Tensor], float]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def fit(cls, latents: Tensor, codec: str = "") -> LatentStatistics:
        """From real latents (N, C, H, W), and the fingerprint of the codec they come from.

        Raises:
            ConfigurationError: fewer than 8, or not finite.
        """
        if len(latents) < 8:
            raise ConfigurationError(
                f"The reference has {len(latents)} real latents; expected at least 8. Give more images; or, from 8 on, "
                "set the data's `held_out_split: train`, so that all are trained on (what is called held-out is then "
                "of training images); or leave out the probes."
            )
        if not bool(torch.isfinite(latents).all()):
            raise ConfigurationError("The codec gives latents that are not finite; encode in float32 or bfloat16.")
        if bool((latents == latents[:1]).all()):
            raise ConfigurationError(
                f"The {len(latents)} real latents are all the same, those of one image again and again or of one "
                "color; give data that vary."
            )
        latents = latents.detach().cpu().float()
        pca = PCABasis.fit(latents.flatten(1))
        cloud = pca.project(latents[:_CLOUD].flatten(1))
        kept = latents[: max(_KEPT_ENTRIES // latents[0].numel(), 1)]
        magnitudes = magnitude_quantiles(latents)
        return cls(LatentBasis.fit(latents), pca, cloud, len(latents), codec, magnitudes, latents=kept)

    @cached_property
    def fingerprint(self) -> str:
        """Rounded, so that it is the same on every machine that computes the same latents."""
        numbers = (self.basis.mean, self.basis.variance, self.pca.variance, self.basis.optimum.error)
        return fingerprint(self.basis.kind, self.num_latents, *([f"{x:.3e}" for x in t.tolist()[:64]] for t in numbers))

    def save(self, path: Path) -> None:
        """Write the reference as safetensors, whole or not at all."""
        basis, optimum = self.basis, self.basis.optimum
        tensors = {
            "rotation": basis.rotation.matrix,
            **{name: value for name, value in vars(basis).items() if isinstance(value, Tensor)},
            **{f"optimum_{name}": value for name, value in vars(optimum).items() if isinstance(value, Tensor)},
            "pca_mean": self.pca.mean,
            "pca_components": self.pca.components,
            "pca_variance": self.pca.variance,
            "cloud": self.cloud,
            "magnitudes": self.magnitudes,
            "latents": self.latents,
        }
        header = {
            "kind": basis.kind,
            "shape": list(basis.shape),
            "known_to": optimum.known_to,
            "total_variance": self.pca.total_variance,
            "num_latents": self.num_latents,
            "codec": self.codec,
            "data": self.data,
        }
        write_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: Path) -> LatentStatistics:
        """Read what ``save`` wrote.

        Raises:
            ConfigurationError: it is damaged, or something else.
        """
        with readable(path, "a reference", "move it away, and it is fitted again"):
            mapped, header = read_tensors(path)
            # Cloned, since products of tensors that lie elsewhere in memory may differ in their last bit.
            tensors = {name: tensor.clone() for name, tensor in mapped.items()}
            rotation = Rotation(header["kind"], tuple(header["shape"]), tensors["rotation"])
            known = {name: tensors[f"optimum_{name}"] for name in ("log_snr", "error", "lower", "upper")}
            optimum = LinearOptimum(**known, known_to=header["known_to"])
            moments = ("order", "mean", "variance", "mean_without", "variance_without", "eigenvalues", "weights")
            basis = LatentBasis(rotation=rotation, optimum=optimum, **{name: tensors[name] for name in moments})
            pca = PCABasis(
                tensors["pca_mean"], tensors["pca_components"], tensors["pca_variance"], header["total_variance"]
            )
            told = header["num_latents"], header["codec"], tensors["magnitudes"], header["data"], tensors["latents"]
            return cls(basis, pca, tensors["cloud"], *told)


def magnitude_quantiles(latents: Tensor) -> Tensor:
    """Return evenly spaced quantiles (Q,) of the magnitudes of latents' entries, from the smallest to the largest; of
    at most some four million entries, evenly spaced, too.
    """
    magnitudes = latents.detach().flatten().abs()
    largest = magnitudes.max()
    magnitudes = magnitudes[:: -(-len(magnitudes) // _SORTED_ENTRIES)].sort().values
    quantiles = magnitudes[torch.linspace(0, len(magnitudes) - 1, min(_QUANTILES, len(magnitudes))).round().long()]
    return torch.cat([quantiles[:-1], largest[None]])


@torch.no_grad()
def encode_images(codec: LatentCodec, image_batches: Iterable[Tensor]) -> Tensor:
    """Latents (N, c, h, w), on the CPU, of batches of images; posterior mode, no randomness."""
    return latents_of(codec, ({"image": images} for images in image_batches))


def latents_of(codec: LatentCodec, batches: Iterable[Batch]) -> Tensor:
    """Return the latents of batches as ``LatentCodec.latents`` takes them: images, or what a cache keeps of them.

    Raises:
        ConfigurationError: there are none, or the scale of the latents was to be measured and was not.
    """
    codec.check_measured()
    named = ({name: batch[name] for name in IMAGES if name in batch} for batch in batches)
    checked = ({**batch, "image": checked_floats(batch["image"])} if "image" in batch else batch for batch in named)
    on_device = ({name: value.to(codec.scale.device) for name, value in batch.items()} for batch in checked)
    latents = [codec.latents(batch, sample_posterior=False).cpu() for batch in on_device]
    if not latents:
        raise ConfigurationError("There are no images to encode.")
    return torch.cat(latents)
