r"""GMRES: x with A x = b for many b at once, each with its own A, of which only products A v are known.

After m steps x is the vector of the Krylov space span(b, A b, …, A^{m−1} b) with the least ‖b − A x‖ (Saad & Schultz,
1986, SIAM J. Sci. Stat. Comput. 7). A need be neither symmetric nor positive, as the Jacobian of a trained network is
not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_NOTHING = 1e-7  # of the length of a product, below which what is left of it is rounding


def gmres(product: Callable[[Tensor], Tensor], b: Tensor, num_steps: int) -> Tensor:
    """Return x (N, …) after so many steps from 0; no row depends on another.

    Args:
        product: A v of each v (N, …), linear, row by row.
        b: (N, …); where a row is 0, so is its x.
        num_steps: m, each of one product; fewer are used where the solution is found before.
    """
    flat = b.flatten(1)
    length = flat.norm(dim=1, keepdim=True)
    basis = [_over(flat, length)]
    hessenberg = flat.new_zeros(len(flat), num_steps + 1, num_steps, dtype=torch.float64)
    for k in range(num_steps):
        new = product(basis[k].view_as(b)).flatten(1)
        before = new.norm(dim=1, keepdim=True)
        for _ in range(2):  # once more, against rounding
            for j, each in enumerate(basis):
                along = (new * each).sum(1, keepdim=True)
                new = new - along * each
                hessenberg[:, j, k] += along[:, 0].double()
        left = new.norm(dim=1, keepdim=True)
        left = torch.where(left > _NOTHING * before, left, 0)
        hessenberg[:, k + 1, k] = left[:, 0].double()
        basis.append(_over(new, left))
    target = torch.zeros_like(hessenberg[:, :, :1])
    target[:, 0] = length.double()
    weights = (torch.linalg.pinv(hessenberg) @ target)[:, :, 0].to(flat)
    return torch.einsum("bk,kbd->bd", weights, torch.stack(basis[:-1])).view_as(b)


def _over(vectors: Tensor, length: Tensor) -> Tensor:
    """Return vectors (N, D) of length 1, or 0 where the length (N, 1) is."""
    return torch.where(length > 0, vectors / length.where(length > 0, 1), 0)
