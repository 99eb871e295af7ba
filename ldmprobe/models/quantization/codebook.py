r"""Vector quantization: codes that are learned, by gradient or by moving averages, from data on.

Codes of diffusers and taming start within ±1/K, far inside the latents, where a few of them take everything and the
others are never moved. Here they start as the centers of the first batch (k-means), and one that is hardly used is put
where a latent is (Dhariwal et al., 2020, arXiv:2005.00341, section 3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ldmprobe.errors import check_numbers
from ldmprobe.models.quantization.base import Gather, Quantization, Quantized, code_statistics, vectors_of
from ldmprobe.types import Component

_LLOYD_STEPS = 10
_VECTORS_PER_CODE = 16  # of the first batch, in which centers are sought
_UNUSED = 1e-6  # of a fair share: a code's average that says nothing anymore


class CodebookQuantization(Quantization, ABC):
    """Codes that start from data and are revived.

    Attributes:
        usage: (K,), moving average over steps of the share of vectors that each code was taken for, in fair shares 1/K.
        seen_counts, seen_sums: how often each code was taken since the last step (K,) and the sums of the vectors that
            it was taken for (K, c), on all ranks.
    """

    usage: Tensor
    seen_counts: Tensor
    seen_sums: Tensor

    def __init__(self, commitment: float = 0.25, revive_below: float = 0.25, usage_decay: float = 0.99) -> None:
        super().__init__()
        name = type(self).__name__
        check_numbers(name, 0, commitment=commitment)
        check_numbers(name, 0, 1, revive_below=revive_below, usage_decay=usage_decay)
        self.commitment, self.revive_below, self.usage_decay = commitment, revive_below, usage_decay
        self._vectors: Tensor | None = None  # (n, c), of this rank's last batch

    def prepare(self, network: Component) -> None:
        # By default diffusers has β on the codebook's term instead.
        network.quantize.legacy, network.quantize.beta = False, self.commitment
        codes = network.quantize.embedding.weight.detach()
        self.register_buffer("usage", torch.ones(len(codes)))
        self.register_buffer("seen_counts", torch.zeros(len(codes)))
        self.register_buffer("seen_sums", torch.zeros_like(codes))

    @torch.no_grad()
    def begin(self, codebooks: list[nn.Parameter], latents: Tensor, gather: Gather, generator: torch.Generator) -> None:
        vectors = gather(vectors_of(latents.detach()).contiguous())
        for codes in codebooks:
            codes.copy_(_centers(vectors, len(codes), generator) if codes is codebooks[0] else codebooks[0])
        self.begun.fill_(True)

    def forward(self, network: Component, latents: Tensor, gather: Gather) -> Quantized:
        quantized, loss, (_, _, codes) = network.quantize(latents)
        if self.training:
            self._see(vectors_of(latents.detach()), codes.flatten(), gather)
        return Quantized(quantized, self._loss(latents, quantized, loss), code_statistics(codes, network.quantize.n_e))

    @torch.no_grad()
    def after_step(self, codebooks: list[nn.Parameter], gather: Gather, generator: torch.Generator) -> None:
        if (vectors := self._vectors) is None:
            return
        fair = self.seen_counts.mean()
        self.usage.lerp_(self.seen_counts / fair, 1 - self.usage_decay)
        self._move(codebooks, self.seen_sums / fair)
        if bool((rare := self.usage < self.revive_below).any()):
            # As many vectors on every rank, whatever the size of its batch.
            drawn = torch.randint(len(vectors), rare.shape, generator=generator)
            pool = gather(vectors[drawn.to(vectors.device)])
            chosen = torch.randperm(len(pool), generator=generator)[: int(rare.sum())]
            self._revive(codebooks, rare, pool[chosen.to(pool.device)])
        self._vectors = None
        self.seen_counts.zero_()
        self.seen_sums.zero_()

    @abstractmethod
    def _loss(self, latents: Tensor, quantized: Tensor, both_terms: Tensor) -> Tensor:
        """Return the term of the loss."""

    def _move(self, codebooks: list[nn.Parameter], sums: Tensor) -> None:
        """Move codes by the sums (K, c) of the vectors that each was taken for, divided by a fair share of vectors."""

    def _revive(self, codebooks: list[nn.Parameter], rare: Tensor, vectors: Tensor) -> None:
        """Put the ``rare`` (K,) codes where ``vectors`` (sum of rare, c) are, and count them as used."""
        for codes in codebooks:
            codes[rare] = vectors.to(codes.dtype)
        self.usage[rare] = 1.0

    def _see(self, vectors: Tensor, codes: Tensor, gather: Gather) -> None:
        counts = torch.bincount(codes, minlength=len(self.seen_counts)).to(self.seen_counts)
        sums = torch.zeros_like(self.seen_sums).index_add_(0, codes, vectors.to(self.seen_sums))
        self.seen_counts += gather(counts[None]).sum(0)
        self.seen_sums += gather(sums[None]).sum(0)
        self._vectors = vectors


class VectorQuantization(CodebookQuantization):
    """Codes trained by gradient (van den Oord et al., 2017, arXiv:1711.00937, eq. 3; VQGAN: arXiv:2012.09841, eq. 4):
    loss ‖sg[z] − e‖² + β ‖z − sg[e]‖², straight-through.

    Args:
        commitment: β.
        revive_below: a code that is used less than this share of 1/K, on average, is put where a latent is; at K = 256
            the default is one in 1,000 vectors. 0 revives none.
        usage_decay: of that average, per step.
    """

    def _loss(self, latents: Tensor, quantized: Tensor, both_terms: Tensor) -> Tensor:
        return both_terms


class MovingAverageQuantization(CodebookQuantization):
    """Codes that are moving averages of the vectors they are taken for (arXiv:1711.00937, appendix A.1, eq. 6–8):
    e = m/n, m ← γ m + (1 − γ) Σ z, n ← γ n + (1 − γ) N; loss β ‖z − sg[e]‖², straight-through.

    Args:
        commitment: β.
        revive_below: a code that is used less than this share of 1/K, on average, is put where a latent is; at K = 256
            the default is one in 1,000 vectors. 0 revives none.
        decay: γ per step.

    Attributes:
        sums: m (K, c), in fair shares of vectors as ``usage``, which is n.
    """

    sums: Tensor

    def __init__(self, commitment: float = 0.25, revive_below: float = 0.25, decay: float = 0.99) -> None:
        super().__init__(commitment, revive_below, decay)

    def prepare(self, network: Component) -> None:
        super().prepare(network)
        network.quantize.embedding.weight.requires_grad_(False)
        self.register_buffer("sums", network.quantize.embedding.weight.detach().clone())

    @torch.no_grad()
    def begin(self, codebooks: list[nn.Parameter], latents: Tensor, gather: Gather, generator: torch.Generator) -> None:
        super().begin(codebooks, latents, gather, generator)
        self.sums.copy_(codebooks[0])

    def _loss(self, latents: Tensor, quantized: Tensor, both_terms: Tensor) -> Tensor:
        return self.commitment * (latents - quantized.detach()).square().mean()

    def _move(self, codebooks: list[nn.Parameter], sums: Tensor) -> None:
        self.sums.lerp_(sums, 1 - self.usage_decay)
        known = self.usage > _UNUSED
        for codes in codebooks:
            codes[known] = (self.sums[known] / self.usage[known, None]).to(codes.dtype)

    def _revive(self, codebooks: list[nn.Parameter], rare: Tensor, vectors: Tensor) -> None:
        super()._revive(codebooks, rare, vectors)
        self.sums[rare] = codebooks[0][rare].to(self.sums.dtype)


def _centers(vectors: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Return ``number`` centers of vectors (n, c) by Lloyd's algorithm, from vectors drawn; one that nothing is nearest
    to is drawn again. Of fewer vectors some are taken several times, a little apart.
    """
    order = torch.randperm(len(vectors), generator=generator).to(vectors.device)
    vectors = vectors[order[: _VECTORS_PER_CODE * number]].float()
    if len(vectors) <= number:
        repeated = vectors[torch.arange(number, device=vectors.device) % len(vectors)]
        apart = 1e-2 * vectors.std() * torch.randn(repeated.shape, generator=generator).to(vectors)
        return repeated + apart * (torch.arange(number, device=vectors.device) >= len(vectors))[:, None]
    centers = vectors[:number]
    for _ in range(_LLOYD_STEPS):
        nearest = torch.cdist(vectors, centers).argmin(1)
        counts = torch.bincount(nearest, minlength=number)
        sums = torch.zeros_like(centers).index_add_(0, nearest, vectors)
        drawn = vectors[torch.randint(len(vectors), (number,), generator=generator).to(vectors.device)]
        centers = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], drawn)
    return centers
