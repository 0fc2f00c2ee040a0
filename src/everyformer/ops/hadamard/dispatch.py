"""The operator: checks, the axis, blocks, the choice of backend, and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.ops.hadamard import reference
from everyformer.ops.hadamard import torch as plain
from everyformer.ops.hadamard.matrices import split

BACKENDS = ("reference", "torch", "triton")


def hadamard(
    x: Float[Tensor, "*shape"],
    dim: int = -1,
    *,
    block: int | None = None,
    inverse: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "*shape"]:
    """The orthogonal Hadamard transform along an axis: lengths and products are kept, outliers are spread out.

    Args:
        x: floating-point values.
        dim: the axis.
        block: transform each ``block`` neighbours along the axis by themselves; the whole axis by default.
        inverse: the transposed transform, which undoes it; for powers of two it is the same.
        backend: ``"reference"``, ``"torch"`` or ``"triton"``; by default triton on CUDA and torch elsewhere.

    Raises:
        ValueError: an unknown backend, an axis that ``block`` does not divide, or a length without a construction.
        TypeError: ``x`` holds integers.
    """
    backend = backend or ("triton" if x.is_cuda else "torch")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if not x.is_floating_point():
        raise TypeError(f"x must be of a floating-point type, got {x.dtype}")
    size = x.shape[dim]
    block = size if block is None else block
    if block < 1 or size % block:
        raise ValueError(f"block must divide the {size} values along dim {dim}, got {block}")
    if not torch.compiler.is_compiling():
        split(block)  # raises where there is no construction; compiled code does so when it runs
    rows = x.movedim(dim, -1)
    rows = rows.unflatten(-1, (size // block, block))
    return _Hadamard.apply(rows, inverse, backend).flatten(-2).movedim(-1, dim)  # type: ignore[no-any-return]


class _Hadamard(torch.autograd.Function):
    """Linear and orthogonal: the gradient is the inverse transform, and nothing is saved."""

    @staticmethod
    def forward(x: Tensor, inverse: bool, backend: str) -> Tensor:
        return (_opaque if torch.compiler.is_compiling() else _transform)(x, inverse, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool, str], output: Tensor) -> None:
        _, ctx.inverse, ctx.backend = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _Hadamard.apply(gradient, not ctx.inverse, ctx.backend), None, None


def _transform(x: Tensor, inverse: bool, backend: str) -> Tensor:
    if backend == "reference":
        return reference.hadamard(x, inverse=inverse)
    if backend == "torch":
        return plain.hadamard(x, inverse=inverse)
    from everyformer.ops.hadamard import triton as kernel

    return kernel.hadamard(x, inverse=inverse)


@torch.library.custom_op("everyformer::hadamard", mutates_args=())
def _opaque(x: Tensor, inverse: bool, backend: str) -> Tensor:
    """For compilers, which need not trace how a matrix is made, and take any number of sizes in one graph."""
    return x.clone() if x.shape[-1] == 1 else _transform(x, inverse, backend)


@_opaque.register_fake
def _(x: Tensor, inverse: bool, backend: str) -> Tensor:
    return x.new_empty(x.shape)
