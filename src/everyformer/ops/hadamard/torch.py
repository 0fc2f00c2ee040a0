"""The transform as a few products with small matrices, for any device.

H of order m * 2^k is the Kronecker product of H_m and of Hadamard matrices of at most 64: each acts on one axis of the
row folded to a block. For n = 4096 these are two products with 64 x 64 matrices instead of one with 4096 x 4096.
"""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.ops.hadamard.matrices import hadamard_matrix, split

RADIX = 6  # doublings in one product


def hadamard(x: Float[Tensor, "*rows n"], *, inverse: bool = False) -> Float[Tensor, "*rows n"]:
    """H x for each row x, in the row's own precision."""
    folded = x.reshape(-1, x.shape[-1]).contiguous()  # batched products would copy strided rows one by one
    # The rows so far are split into ever more axes; each factor is the next axis from the left.
    for order, rest in factors(x.shape[-1]):
        matrix = _matrix(order, str(x.device), x.dtype)
        matrix = matrix.mT if inverse else matrix
        folded = matrix @ folded.reshape(-1, order, rest) if rest > 1 else folded.reshape(-1, order) @ matrix.mT
    return folded.reshape(x.shape)


def factors(order: int) -> list[tuple[int, int]]:
    """The orders of the small matrices, with the length of what lies to the right of each."""
    base, doublings = split(order)
    orders = [base] if base > 1 else []
    parts = -(-doublings // RADIX)
    orders += [2 ** ((doublings + part) // parts) for part in range(parts)]
    found, rest = [], order
    for small in orders:
        rest //= small
        found.append((small, rest))
    return found


@functools.lru_cache(maxsize=64)
def _matrix(order: int, device: str, dtype: torch.dtype) -> Tensor:
    return hadamard_matrix(order).to(device, dtype)
