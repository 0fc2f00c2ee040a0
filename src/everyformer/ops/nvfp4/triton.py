"""The quantiser as one kernel: values are read once, and codes and scales written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from torch import Tensor

from everyformer.ops.nvfp4.format import BLOCK


@triton.jit
def _e4m3(x):  # type: ignore[no-untyped-def]
    """The bits of float8_e4m3fn nearest to x, from 2^-6 to 448, ties to even: exponents differ by 127 - 7 = 120."""
    bits = x.to(tl.int32, bitcast=True)
    bits += 0x7FFFF + ((bits >> 20) & 1)  # three of the 23 bits of the mantissa stay
    return (bits >> 20) - (120 << 3)


@triton.jit
def _quantise(
    x_ptr, noise_ptr, tensor_scale_ptr, packed_ptr, scales_ptr, rows, columns,
    TILED: tl.constexpr, STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """Sixteen rows of sixteen values."""
    row = tl.program_id(0) * 16 + tl.arange(0, 16)
    column = tl.program_id(1) * 16
    places = row[:, None].to(tl.int64) * columns + column + tl.arange(0, 16)[None, :]
    inside = row[:, None] < rows
    x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
    tensor_scale = tl.load(tensor_scale_ptr)

    largest = tl.max(tl.abs(x), 1)
    if TILED:
        largest = tl.max(largest, 0) + tl.zeros([16], tl.float32)
    scale = tl.div_rn(tl.div_rn(largest, 6.0), tensor_scale)
    bits = _e4m3(tl.minimum(tl.maximum(scale, 0.015625), 448.0))
    rounded = ((bits + (120 << 3)) << 20).to(tl.float32, bitcast=True)
    one = tl.full([16], 1.0, tl.float32)
    magnitude = tl.minimum(tl.abs(x) * tl.div_rn(tl.div_rn(one, tensor_scale), rounded)[:, None], 6.0)

    if STOCHASTIC:
        noise = tl.load(noise_ptr + places, mask=inside, other=0.0).to(tl.float32)
        steps = magnitude * tl.where(magnitude < 2, 2.0, tl.where(magnitude < 4, 1.0, 0.5))
        below = tl.floor(steps)
        codes = below.to(tl.int32) + (noise < steps - below).to(tl.int32)
        codes += tl.where(magnitude < 2, 0, tl.where(magnitude < 4, 2, 4))
    else:
        codes = (magnitude > 0.25).to(tl.int32) + (magnitude >= 0.75) + (magnitude > 1.25) + (magnitude >= 1.75)
        codes += (magnitude > 2.5).to(tl.int32) + (magnitude >= 3.5) + (magnitude > 5.0)
    codes |= tl.where(x.to(tl.int32, bitcast=True) < 0, 8, 0)

    low, high = tl.split(tl.reshape(codes, (16, 8, 2)))
    halves = row[:, None].to(tl.int64) * (columns // 2) + column // 2 + tl.arange(0, 8)[None, :]
    tl.store(packed_ptr + halves, (low | (high << 4)).to(tl.uint8), mask=inside)
    if TILED:
        # All sixteen are the same; the first is written.
        place = tl.program_id(0) * (columns // 16) + tl.program_id(1) + tl.arange(0, 16)
        tl.store(scales_ptr + place, bits.to(tl.uint8), mask=tl.arange(0, 16) < 1)
    else:
        place = row.to(tl.int64) * (columns // 16) + tl.program_id(1)
        tl.store(scales_ptr + place, bits.to(tl.uint8), mask=row < rows)


def quantise(
    x: Float[Tensor, "rows n"], tensor_scale: Float[Tensor, ""], two_dimensional: bool, noise: Tensor | None
) -> tuple[UInt8[Tensor, "rows n/2"], Float[Tensor, "rows/1or16 n/16"]]:
    """Packed codes, and block scales in float8_e4m3fn."""
    rows, size = x.shape
    packed = torch.empty(rows, size // 2, dtype=torch.uint8, device=x.device)
    height = BLOCK if two_dimensional else 1
    scales = torch.empty(rows // height, size // BLOCK, dtype=torch.uint8, device=x.device)
    if x.numel():
        grid = (triton.cdiv(rows, BLOCK), size // BLOCK)
        stochastic = noise is not None
        _quantise[grid](
            x, noise if stochastic else x, tensor_scale, packed, scales, rows, size, two_dimensional, stochastic
        )
    return packed, scales.view(torch.float8_e4m3fn)
