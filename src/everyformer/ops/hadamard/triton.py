"""Sylvester's butterflies in one kernel: a row stays in registers from its only read to its only write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from everyformer.ops.hadamard.matrices import hadamard_matrix, split


@triton.jit
def _butterflies(x_ptr, y_ptr, scale, N: tl.constexpr, DOUBLINGS: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.program_id(0) * N + tl.arange(0, N)
    x = tl.load(x_ptr + places).to(tl.float32)
    for stage in tl.static_range(DOUBLINGS):
        half: tl.constexpr = 1 << stage
        pairs = tl.permute(tl.reshape(x, (N // (2 * half), 2, half)), (0, 2, 1))
        first, second = tl.split(pairs)
        pairs = tl.join(first + second, first - second)
        x = tl.reshape(tl.permute(pairs, (0, 2, 1)), (N,))
    tl.store(y_ptr + places, (x * scale).to(y_ptr.dtype.element_ty))


def hadamard(x: Float[Tensor, "*rows n"], *, inverse: bool = False) -> Float[Tensor, "*rows n"]:
    """H x for each row x, accumulated in float32; what is not a power of two is one small product more."""
    base, doublings = split(x.shape[-1])
    length = 2**doublings
    folded = x.reshape(-1, length).contiguous()
    out = torch.empty_like(folded)
    if folded.numel():
        _butterflies[(len(folded),)](folded, out, length**-0.5, length, doublings)
    if base > 1:
        matrix = hadamard_matrix(base).to(x)
        out = (matrix.mT if inverse else matrix) @ out.reshape(-1, base, length)
    return out.reshape(x.shape)
