"""The operator: checks, the tensor's scale and the choice of backend."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.ops.nvfp4 import reference
from everyformer.ops.nvfp4 import torch as plain
from everyformer.ops.nvfp4.format import BLOCK, Quantised, tensor_scale, values

BACKENDS = ("reference", "torch", "triton")


def quantise(
    x: Float[Tensor, "*rows n"],
    *,
    two_dimensional: bool = False,
    noise: Float[Tensor, "*rows n"] | None = None,
    check: bool = True,
    backend: str | None = None,
) -> Quantised:
    """``x`` in NVFP4 (arXiv 2509.25149, appendix B): scales from the largest magnitudes, values on the E2M1 grid.

    Without ``noise`` values are rounded to the nearest, ties to the even code, bit for bit as torchao does. With it they
    are rounded stochastically: up where the noise is below the way that the value has gone between its neighbours. The
    expectation is then the value itself, but for values above six times a block scale that was rounded down, which
    saturate.

    Args:
        x: finite values; blocks lie along the last dim.
        two_dimensional: one scale for each 16 x 16 tile of the last two dims: the same for the transposed matrix.
        noise: uniform in [0, 1), of the shape of ``x``.
        check: refuse what is not finite, which waits for the device. Unchecked, values that are not finite make every
            value NaN when read.
        backend: ``"reference"``, ``"torch"`` or ``"triton"``; by default triton on CUDA and torch elsewhere.

    Raises:
        ValueError: sizes that 16 does not divide, values that are not finite, noise of another shape, unknown backend.
        TypeError: ``x`` is not float32, bfloat16 or float16.
    """
    backend = backend or ("triton" if x.is_cuda else "torch")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"x must be float32, bfloat16 or float16, got {x.dtype}")
    if x.ndim < 1 + two_dimensional:
        raise ValueError(f"x must have at least {1 + two_dimensional} dims, got {x.ndim}")
    for dim in (-1, -2)[: 1 + two_dimensional]:
        if x.shape[dim] % BLOCK:
            raise ValueError(f"x must have a multiple of {BLOCK} values along dim {dim}, got {x.shape[dim]}")
    if noise is not None and noise.shape != x.shape:
        raise ValueError(f"noise must be of the shape of x, {tuple(x.shape)}, got {tuple(noise.shape)}")
    low, high = x.aminmax() if x.numel() else (x.new_zeros(()), x.new_zeros(()))
    amax = torch.maximum(-low, high)
    if check and not amax.isfinite():
        raise ValueError("x must be finite, got infinities or NaN")
    scale = tensor_scale(amax)
    rows = x.contiguous().view(-1, x.shape[-1])
    noise = None if noise is None else noise.contiguous().view(rows.shape)
    if backend == "reference":
        packed, scales = reference.quantise(rows, scale, two_dimensional, noise)
    elif backend == "torch":
        packed, scales = plain.quantise(rows, scale, two_dimensional, noise)
    else:
        from everyformer.ops.nvfp4 import triton as kernel

        packed, scales = kernel.quantise(rows, scale, two_dimensional, noise)
    leading = x.shape[:-1]
    tiled = (*leading[:-1], leading[-1] // BLOCK) if two_dimensional else leading
    size = x.shape[-1]
    return Quantised(packed.view(*leading, size // 2), scales.view(*tiled, size // BLOCK), scale)


def dequantise(quantised: Quantised, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*rows n"]:
    """The values that an NVFP4 tensor stands for."""
    return (values(quantised) * quantised.tensor_scale).to(dtype)
