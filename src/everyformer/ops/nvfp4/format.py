"""What an NVFP4 tensor is made of, and how its bytes are read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

BLOCK = 16
GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1: the values of codes 0 to 7; codes 8 to 15 are their negatives
LARGEST = 6.0
LARGEST_SCALE = 448.0  # of E4M3
SMALLEST_SCALE = 2.0**-6  # the smallest normal number of E4M3: block scales are never subnormal, so none is zero
SMALLEST_TENSOR_SCALE = 2.0**-120  # so that its reciprocal over the smallest block scale is finite


class Quantised(NamedTuple):
    """A tensor (..., rows, n) in NVFP4: each value is that of its code, times its block's scale, times the tensor's.

    ``packed`` holds two codes a byte, the first in the low half. ``scales`` (float8_e4m3fn) has one entry for each
    sixteen values of a row, or for each 16 x 16 tile, which is told by its number of rows.
    """

    packed: UInt8[Tensor, "*rows n/2"]
    scales: Float[Tensor, "*rows/1or16 n/16"]
    tensor_scale: Float[Tensor, ""]

    @property
    def two_dimensional(self) -> bool:
        """Whether a scale belongs to a 16 x 16 tile."""
        return self.packed.ndim > 1 and self.scales.shape[-2] != self.packed.shape[-2]

    @property
    def nbytes(self) -> int:
        """Bytes that the three tensors take."""
        return sum(part.numel() * part.element_size() for part in self)


def tensor_scale(amax: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The scale at which the largest value takes the largest code under the largest block scale.

    It is at least 2^-120, that of a tensor of zeros.
    """
    return (amax.float() / (LARGEST * LARGEST_SCALE)).clamp(min=SMALLEST_TENSOR_SCALE)


def pack(codes: UInt8[Tensor, "*rows n"]) -> UInt8[Tensor, "*rows n/2"]:
    """Two four-bit codes a byte, the first in the low half.

    Raises:
        ValueError: an odd number of codes in a row.
    """
    if codes.shape[-1] % 2:
        raise ValueError(f"codes must come in pairs along the last dim, got {codes.shape[-1]}")
    # A pair read as one little-endian number is low + 256 high, and a shift by four brings the high half down.
    pairs = codes.contiguous().view(torch.int16)
    return (pairs | (pairs >> 4)).to(torch.uint8)


def unpack(packed: UInt8[Tensor, "*rows n/2"]) -> UInt8[Tensor, "*rows n"]:
    """The codes of :func:`pack`."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def values(quantised: Quantised, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*rows n"]:
    """Codes times block scales, without the tensor's scale: exact in bfloat16 as in float32, and below 2^12.

    A product of two NVFP4 matrices is that of their values, accumulated in float32, times both tensor scales.
    """
    packed, scales, _ = quantised
    table = torch.tensor(GRID, dtype=dtype, device=packed.device)
    table = torch.cat([table, -table])
    codes = table.index_select(0, unpack(packed).flatten().int()).view(*packed.shape[:-1], scales.shape[-1], BLOCK)
    scales = scales.to(dtype)
    if quantised.two_dimensional:
        scales = scales.repeat_interleave(BLOCK, -2)
    return (codes * scales.unsqueeze(-1)).flatten(-2)
