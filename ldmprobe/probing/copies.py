r"""Copies: generated images that lie far nearer to one training image than to any other.

.. math:: r(x) = \frac{d_1(x)}{d_2(x)} < \tfrac13

with d_1 and d_2 the Euclidean distances to the nearest and the second nearest training image (Yoon et al., 2023,
"Diffusion probabilistic models generalize when they fail to memorize", ICML workshop on structured probabilistic
inference; Gu et al., 2023, arXiv:2310.02664), here in the features of a network. What data without any copying have is
measured beside it: the share for held-out images, which near-duplicates in the data make larger than 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from ldmprobe.io.metric import Metric
from ldmprobe.io.record import ProbeRecord
from ldmprobe.probing.analyses.base import Findings
from ldmprobe.probing.analyses.samples import png_bytes, side_by_side
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.real_features import RealFeatures

QUALITY = "quality"  # the probe whose samples are searched
COPY = 1 / 3  # the largest r of a copy
_AT_ONCE = 256  # images whose distances are in memory
_SAME = 1e-3  # of the mean distance between images: what is closer differs by rounding
METRICS = (
    Metric(
        "copied", "Copies among samples",
        "The share of samples that lie less than a third as far from one training image as from the next: 0 is none.",
        "share of samples", good="lower", ideal="copied_held_out", shown="headline",
    ),
    Metric("copied/lower", "Lower end of its 95 % interval", "", "share"),
    Metric("copied/upper", "Upper end of its 95 % interval", "", "share"),
    Metric(
        "copied_held_out", "Of held-out images, by the same test",
        "What there is without any copying: near-duplicates in the data.", "share of held-out images", good="lower",
    ),
    Metric("copied_held_out/lower", "Lower end of its 95 % interval", "", "share"),
    Metric("copied_held_out/upper", "Upper end of its 95 % interval", "", "share"),
    Metric("copy_ratio", "Smallest d₁/d₂ of a sample", "Below ⅓ it is a copy.", "d₁/d₂"),
    Metric(
        "copies", "Samples nearest to a training image",
        "The samples with the smallest d₁/d₂, each with the training image it is nearest to at its right.",
        shown="headline",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class CopySearch:
    """A search for copies of training images among samples.

    Attributes:
        known: features of the training images, at least 2.
        images: returns the training images (n, C, H, W) in [−1, 1] of these places among them; called on every rank.
            Others than those, of data that come in another order each time, are not shown.
        held_out: features of images that the model was not trained on; None where there are none.
        num_shown: how many samples are shown.
    """

    known: RealFeatures
    images: Callable[[Sequence[int]], Tensor]
    held_out: RealFeatures | None = None
    num_shown: int = 10

    @cached_property
    def held_out_ratios(self) -> Tensor:
        """d₁/d₂ of the held-out images, (K,)."""
        return torch.zeros(0) if self.held_out is None else self.nearest(self.held_out.features)[0]

    @cached_property
    def _distinct(self) -> Tensor:
        return distinct(self.known.features)

    def nearest(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what ``nearest`` does of the known images, which are compared with one another once."""
        return nearest(features, self.known.features, self._distinct)


def nearest(features: Tensor, known: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return d₁/d₂ of each of the features (N, F), and which of the known ones (M, F) is nearest, both (N,). Known ones
    that are equal count as one; the ratio is 0 for what lies on two, and NaN for what is not finite.

    Args:
        kept: the places of known ones that differ, where they have been found before.
    """
    ratios, places, kept = [], [], distinct(known) if kept is None else kept
    others = known[kept].double()
    for part in features.double().split(_AT_ONCE):
        every = torch.cdist(part, others)
        place = every.topk(2, largest=False).indices
        # cdist subtracts squares of like size where images are many: of two that are one, rounding is left.
        distance, order = (part[:, None] - others[place]).norm(dim=2).sort(1)
        on_two = distance[:, 1] <= _SAME * every.mean(1)
        ratios.append(torch.where(on_two, 0.0, distance[:, 0] / distance[:, 1]))
        places.append(kept[place.gather(1, order[:, :1])[:, 0]])
    return torch.cat(ratios), torch.cat(places)


def distinct(known: Tensor) -> Tensor:
    """Return the first place of each image among the known ones (M, F), in order; two places at least."""
    _, image = torch.unique(known, dim=0, return_inverse=True)
    places = torch.arange(len(known))
    first = torch.full_like(places, len(known)).scatter_reduce(0, image, places, "amin")
    found = first[first < len(known)].sort().values
    return found if len(found) > 1 else places[:2]


def copied_in(record: ProbeRecord) -> str:
    """Return what a record says of copies, in a sentence, where there are surely more among samples than among held-out
    images; "" where there are not, or it does not tell.
    """
    return str(record.provenance["notes"]["copied"]) if _surely_more(record.scalars) else ""


def _surely_more(scalars: Mapping[str, float]) -> bool:
    return scalars.get("copied/lower", math.nan) > scalars.get("copied_held_out/upper", math.nan)


class CopyFinder:
    """Looks at a rank's samples as they are made, and keeps the few images that are shown.

    Args:
        search: for what.
        sample_ids: the numbers of this rank's samples; whatever comes after them is passed over.
    """

    def __init__(self, search: CopySearch, sample_ids: Tensor) -> None:
        self._search, self._ids = search, sample_ids
        self._found = torch.zeros(0, 2, dtype=torch.float64)  # d₁/d₂, and the place of the nearest
        self._kept = torch.zeros(0, dtype=torch.long)  # places among this rank's samples
        self._images = torch.zeros(0)

    def update(self, images: Tensor, features: Tensor) -> None:
        """Look at the next samples: images (n, C, H, W) and their features (n, F)."""
        seen = len(self._found)
        number = min(len(images), len(self._ids) - seen)
        ratio, place = self._search.nearest(features[:number].cpu())
        self._found = torch.cat([self._found, torch.stack([ratio, place.double()], 1)])
        kept = torch.cat([self._kept, seen + torch.arange(number)])
        own = images[:number].cpu()
        own = torch.cat([self._images, own]) if len(self._images) else own
        best = self._found[kept, 0].argsort(stable=True)[: self._search.num_shown]
        self._kept, self._images = kept[best], own[best]

    def finish(
        self, ranks: Ranks, num_samples: int, image_shape: Sequence[int], network: nn.Module, device: torch.device
    ) -> Findings:
        """Return what was found among the samples of all ranks, the same on each; the notes say it in words.

        Args:
            image_shape: (C, H, W).
            network: the feature network.
            device: its device, where ranks exchange tensors.
        """
        known = self._search.known.features
        ratio, place = ranks.gather_rows(self._found.to(device), self._ids, num_samples).unbind(1)
        order = ratio.argsort(stable=True)[: self._search.num_shown]
        shown = order[ratio[order].isfinite()]
        images = torch.zeros(len(shown), *image_shape, device=device)
        for image, number in zip(self._images, self._ids[self._kept], strict=True):
            images[shown == number] = image.float().to(device)
        images, pictures = ranks.all_reduce_sum(images).cpu(), []
        if len(shown):
            originals = self._search.images(place[shown].long().tolist())
            same = torch.isclose(network(originals.to(device)).cpu(), known[place[shown].long()], rtol=1e-3, atol=1e-3)
            if bool(same.all()):
                pictures = [png_bytes(side_by_side(pair)) for pair in zip(images, originals.cpu(), strict=True)]
        scalars = {"copy_ratio": float(ratio.min()), **_share("copied", ratio)}
        scalars |= _share("copied_held_out", self._search.held_out_ratios)
        said = _in_words(scalars, num_samples, len(self._search.held_out_ratios), len(known))
        shown_beside = {"copies": pictures} if pictures else {}
        return Findings(scalars, images=shown_beside, provenance={"notes": dict.fromkeys(("copied", "copies"), said)})


def _share(name: str, ratio: Tensor) -> dict[str, float]:
    """Return the share of copies with its 95 % interval (Wilson, 1927); nothing of no images."""
    if not len(ratio):
        return {}
    if not bool(ratio.isfinite().all()):
        return dict.fromkeys((name, f"{name}/lower", f"{name}/upper"), math.nan)
    copies = int((ratio < COPY).sum())
    interval = binomtest(copies, len(ratio)).proportion_ci(method="wilson")
    return {name: copies / len(ratio), f"{name}/lower": float(interval.low), f"{name}/upper": float(interval.high)}


def _in_words(scalars: Mapping[str, float], num_samples: int, num_held_out: int, num_known: int) -> str:
    def said(name: str) -> str:
        share, lower, upper = (scalars[each] for each in (name, f"{name}/lower", f"{name}/upper"))
        return f"{share:.1%} (95 %: {lower:.1%} to {upper:.1%})"

    if math.isnan(scalars["copied"]):
        return "Samples have NaN or Inf in them: nothing can be said of copies."
    beside = f", of {num_held_out:,} held-out images {said('copied_held_out')}" if num_held_out else ""
    copying = _surely_more(scalars) if num_held_out else scalars["copied"] > 0
    return (
        f"{'Samples are copies of training images' if copying else 'No copying is measurable'}: of {num_samples:,} "
        f"samples {said('copied')} lie less than a third as far from one of {num_known:,} training images as from the "
        f"next{beside}."
    )
