"""The library's eight-bit products where the device has them, and the same results by wider types elsewhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int32, Shaped
from torch import Tensor

EXACT = 1024  # so many products of int8 add up to less than 2 ** 24, which float32 holds exactly


def scaled_matmul(
    a: Shaped[Tensor, "m k"],
    a_scale: Float[Tensor, ""],
    b: Shaped[Tensor, "k n"],
    b_scale: Float[Tensor, ""],
    dtype: torch.dtype,
) -> Float[Tensor, "m n"]:
    """One eight-bit product, then one multiplication by the scales."""
    product = _int8(a, b) if a.dtype == torch.int8 else _float8(a, b)
    return (product * (a_scale * b_scale)).to(dtype)


def _int8(a: Int8[Tensor, "m k"], b: Int8[Tensor, "k n"]) -> Int32[Tensor, "m n"]:
    if a.shape[1] == 1:  # torch._int_mm on the CPU (2.14) gets this one wrong
        return a.int() * b.int()
    if a.device.type == "cpu":
        return torch._int_mm(a, b)
    if a.device.type == "cuda":
        left, right = padded(a, b, 8, 24)  # cuBLAS wants multiples of 8, and more than 16 rows
        return torch._int_mm(left, right)[: len(a), : b.shape[1]]
    return int8_by_float32(a, b)


def _float8(a: Shaped[Tensor, "m k"], b: Shaped[Tensor, "k n"]) -> Float[Tensor, "m n"]:
    if a.device.type == "cpu" or (a.device.type == "cuda" and torch.cuda.get_device_capability(a.device) >= (8, 9)):
        one = torch.ones((), device=a.device)
        # cuBLAS wants multiples of 16, rows of the first and columns of the second in one piece.
        left, right = padded(a, b, 16, 16) if a.is_cuda else (a, b)
        right = right.mT.contiguous().mT
        product = torch._scaled_mm(left.contiguous(), right, scale_a=one, scale_b=one, out_dtype=torch.float32)
        return product[: len(a), : b.shape[1]]
    return a.float() @ b.float()


def padded(
    a: Shaped[Tensor, "m k"], b: Shaped[Tensor, "k n"], multiple: int, rows: int
) -> tuple[Shaped[Tensor, "m_ k_"], Shaped[Tensor, "k_ n_"]]:
    """Zeros after the last row and column, up to a multiple of each size and at least ``rows`` rows of ``a``."""
    (m, k), n = a.shape, b.shape[1]
    below, inside, beside = max(rows - m, -m % multiple), -k % multiple, -n % multiple
    if not (below or inside or beside):
        return a, b
    # Padding moves bytes; not every device has it for float8.
    left, right = (F.pad(x.view(torch.uint8), pad).view(x.dtype) for x, pad in (
        (a, (0, inside, 0, below)), (b, (0, beside, 0, inside)),
    ))  # fmt: skip
    return left, right


def int8_by_float32(a: Int8[Tensor, "m k"], b: Int8[Tensor, "k n"]) -> Int32[Tensor, "m n"]:
    """The exact product where there is none of int8: float32 products of so few columns that nothing is rounded."""
    short = -a.shape[1] % EXACT if a.shape[1] > EXACT else 0
    parts = max(1, (a.shape[1] + short) // EXACT)
    left = F.pad(a, (0, short)).float().unflatten(1, (parts, -1)).movedim(1, 0)
    right = F.pad(b, (0, 0, 0, short)).float().unflatten(0, (parts, -1))
    return (left @ right).to(torch.int32).sum(0, dtype=torch.int32)
