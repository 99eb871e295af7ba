"""The ground that all probes share: looking without disturbing, progress, and work shared over ranks."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all) as a probe proceeds; may raise to stop it."""


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


@contextmanager
def progress_bar(name: str, shown: bool = True) -> Iterator[Progress]:
    """A progress bar with the time left."""
    from tqdm import tqdm

    with tqdm(desc=name, disable=not shown, leave=False, dynamic_ncols=True) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


@contextmanager
def plain_stderr() -> Iterator[None]:
    """Write to the standard error that rich has redirected, where its live display has: a bar that ends in no line
    break, as tqdm's do, is written again each time that a notebook shows something, without end (rich #3183).
    """
    stream = sys.stderr
    try:
        from rich.file_proxy import FileProxy
    except ImportError:
        yield
        return
    while isinstance(stream, FileProxy):
        stream = stream.rich_proxied_file
    with redirect_stderr(stream):
        yield


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Eval mode, no gradients, no autocast; then everything as it was, also after an exception: the training flag of
    each module, and the random state of Python, NumPy, torch and CUDA. (Buffers are not copied: eval mode leaves them
    alone.)
    """
    flags = [(module, module.training) for root in modules for module in root.modules()]
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        for module, _ in flags:
            module.training = False
        # no_grad, not inference_mode: tensors cached under the latter break the next backward pass.
        with torch.no_grad(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        for module, training in flags:
            module.training = training
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def _alone(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Ranks:
    """The way that work is shared: rank r of W takes samples r, r + W, …; results are summed over all. One process by
    default.

    Where the network is sharded, each pass through it is a collective, and a rank that makes one more than another
    waits for ever. So latents go through it by ``even_share``, which is equally long on every rank.
    """

    rank: int = 0
    world_size: int = 1
    all_reduce_sum: Callable[[Tensor], Tensor] = _alone

    def share(self, num_samples: int) -> Tensor:
        """The numbers of this rank's samples, (n,), int64."""
        return torch.arange(num_samples)[self.rank :: self.world_size]

    def even_share(self, num_samples: int) -> Tensor:
        """``share``, made up to the length of the longest rank's by sample 0, whose results here are to be thrown
        away.
        """
        longest = -(-num_samples // self.world_size)
        mine = self.share(num_samples)
        return torch.cat([mine, mine.new_zeros(longest - len(mine))])

    def gather_rows(self, rows: Tensor, sample_ids: Tensor, num_samples: int) -> Tensor:
        """All samples' rows (num_samples, …), float64 on the CPU, from each rank's own (n, …); further rows are thrown
        away.
        """
        everything = torch.zeros(num_samples, *rows.shape[1:], dtype=torch.float64, device=rows.device)
        everything[sample_ids.to(rows.device)] = rows[: len(sample_ids)].double()
        return self.all_reduce_sum(everything).cpu()


class Running(TypedDict):
    """The arguments by which a probe knows of the training that it looks at."""

    step: int
    ranks: Ranks
    progress: Progress
