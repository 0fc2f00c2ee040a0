"""The equations as they are written (arXiv 2509.25149, appendix B), in float32: the truth."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from everyformer.ops.nvfp4.format import BLOCK, GRID, LARGEST, LARGEST_SCALE, SMALLEST_SCALE


def quantise(
    x: Float[Tensor, "rows n"], tensor_scale: Float[Tensor, ""], two_dimensional: bool, noise: Tensor | None
) -> tuple[UInt8[Tensor, "rows n/2"], Float[Tensor, "rows/1or16 n/16"]]:
    """Packed codes, and block scales in float8_e4m3fn."""
    rows, size = x.shape
    height = BLOCK if two_dimensional else 1
    tiles = x.float().reshape(rows // height, height, size // BLOCK, BLOCK)
    scales = tiles.abs().amax((1, 3)) / LARGEST / tensor_scale
    scales = scales.clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float8_e4m3fn)
    # The scale is applied as it was stored, that is rounded, so that reading undoes it.
    scaled = tiles * (1 / tensor_scale / scales.float())[:, None, :, None]
    magnitude = scaled.abs().clamp(max=LARGEST)
    grid = torch.tensor(GRID, device=x.device)
    lower = ((magnitude.unsqueeze(-1) >= grid).sum(-1) - 1).clamp(max=len(GRID) - 2)
    below, above = grid[lower], grid[lower + 1]
    if noise is None:
        way_down, way_up = magnitude - below, above - magnitude
        up = (way_up < way_down) | ((way_up == way_down) & (lower % 2 == 1))  # of a tie, the even code
    else:
        up = noise.reshape(tiles.shape) * (above - below) < magnitude - below
    codes = lower + up.long() + 8 * scaled.signbit().long()
    low, high = codes.reshape(rows, size // 2, 2).unbind(-1)
    return (low + 16 * high).to(torch.uint8), scales
