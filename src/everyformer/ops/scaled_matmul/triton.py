"""One kernel for both types: sums in int32 or float32, scaled in registers before the only write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Shaped
from torch import Tensor

BLOCK, INNER = 64, 32


@triton.jit
def _product(
    a_ptr, b_ptr, a_scale, b_scale, out_ptr, m, n, k, a_row, a_column, b_row, b_column,
    BLOCK: tl.constexpr, INNER: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK, BLOCK], SUM)
    for start in range(0, k, INNER):
        inner = start + tl.arange(0, INNER)
        a_inside = (rows[:, None] < m) & (inner[None, :] < k)
        b_inside = (inner[:, None] < k) & (columns[None, :] < n)
        a = tl.load(a_ptr + rows[:, None] * a_row + inner[None, :] * a_column, mask=a_inside)
        b = tl.load(b_ptr + inner[:, None] * b_row + columns[None, :] * b_column, mask=b_inside)
        # float16 holds every e4m3 value, and products of two are exact in float32.
        if SUM == tl.float32:  # noqa: SIM300
            a, b = a.to(tl.float16), b.to(tl.float16)
        # Outside it is undefined what was read.
        total += tl.dot(tl.where(a_inside, a, 0).to(a.dtype), tl.where(b_inside, b, 0).to(b.dtype), out_dtype=SUM)
    result = total.to(tl.float32) * (tl.load(a_scale) * tl.load(b_scale))
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(out_ptr + rows[:, None] * n + columns[None, :], result.to(out_ptr.dtype.element_ty), mask=inside)


def scaled_matmul(
    a: Shaped[Tensor, "m k"],
    a_scale: Float[Tensor, ""],
    b: Shaped[Tensor, "k n"],
    b_scale: Float[Tensor, ""],
    dtype: torch.dtype,
) -> Float[Tensor, "m n"]:
    """A block of the result per program."""
    (m, k), n = a.shape, b.shape[1]
    out = torch.empty(m, n, dtype=dtype, device=a.device)
    if out.numel():
        grid = (triton.cdiv(m, BLOCK), triton.cdiv(n, BLOCK))
        total = tl.int32 if a.dtype == torch.int8 else tl.float32
        _product[grid](a, b, a_scale, b_scale, out, m, n, k, *a.stride(), *b.stride(), BLOCK, INNER, total)
    return out
