"""The quantiser in few passes over the tensor, for any device."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from everyformer.ops.nvfp4.format import BLOCK, LARGEST, LARGEST_SCALE, SMALLEST_SCALE, pack


def quantise(
    x: Float[Tensor, "rows n"], tensor_scale: Float[Tensor, ""], two_dimensional: bool, noise: Tensor | None
) -> tuple[UInt8[Tensor, "rows n/2"], Float[Tensor, "rows/1or16 n/16"]]:
    """Packed codes, and block scales in float8_e4m3fn."""
    blocks = x.float().view(len(x), x.shape[1] // BLOCK, BLOCK)
    magnitude = blocks.abs()
    largest = magnitude.amax(-1)
    if two_dimensional:
        largest = largest.view(-1, BLOCK, largest.shape[-1]).amax(1)
    scales = (largest / LARGEST / tensor_scale).clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float8_e4m3fn)
    factor = 1 / tensor_scale / scales.float()
    if two_dimensional:
        factor = factor.repeat_interleave(BLOCK, 0)
    magnitude.mul_(factor.unsqueeze(-1)).clamp_(max=LARGEST)
    codes = _nearest(magnitude) if noise is None else _stochastic(magnitude, noise.view_as(magnitude))
    # As integers negative numbers are below zero, and so is a negative zero.
    codes |= (blocks.view(torch.int32) < 0).view(torch.uint8) << 3
    return pack(codes.view(x.shape)), scales


def _nearest(magnitude: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """One for each middle between neighbours that is passed; on a tie the even code wins."""
    codes = (magnitude > 0.25).view(torch.uint8)
    for passed in (
        magnitude >= 0.75, magnitude > 1.25, magnitude >= 1.75, magnitude > 2.5, magnitude >= 3.5, magnitude > 5.0,
    ):  # fmt: skip
        codes += passed.view(torch.uint8)
    return codes


def _stochastic(magnitude: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Neighbours lie 0.5 apart below 2, 1 between 2 and 4, and 2 above; counted in these, the rest decides."""
    above_two, above_four = magnitude >= 2, magnitude >= 4
    steps = torch.where(above_two, magnitude, magnitude * 2)
    steps = torch.where(above_four, magnitude * 0.5, steps)
    below = steps.floor()
    up = noise < steps.sub_(below)
    codes = above_two.view(torch.uint8) + above_four.view(torch.uint8)
    codes <<= 1  # the codes of 2 and 4 are 4 and 6: two and four more than their steps
    codes += below.to(torch.uint8)
    codes += up.view(torch.uint8)
    return codes
