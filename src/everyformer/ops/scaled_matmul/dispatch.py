"""The operator: checks and the choice of backend."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from everyformer.ops.scaled_matmul import reference
from everyformer.ops.scaled_matmul import torch as plain

BACKENDS = ("reference", "torch", "triton")


def scaled_matmul(
    a: Shaped[Tensor, "m k"],
    a_scale: Float[Tensor, ""],
    b: Shaped[Tensor, "k n"],
    b_scale: Float[Tensor, ""],
    *,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Float[Tensor, "m n"]:
    """a_scale * b_scale * (a @ b) of two tensors that were quantised alike, without gradients of its own.

    Sums of int8 products are exact; those of float8 are kept in float32 at least. Any strides will do.

    Args:
        a, b: both int8, or both float8 (e4m3), of shapes that multiply.
        dtype: of the result.
        backend: ``"reference"``, ``"torch"`` (the default) or ``"triton"``.

    Raises:
        ValueError: shapes that do not multiply, or an unknown backend.
        TypeError: values of other types, or of two.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"a and b must be (m, k) and (k, n), got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.dtype != b.dtype or a.dtype not in (torch.int8, torch.float8_e4m3fn):
        raise TypeError(f"a and b must both be torch.int8 or torch.float8_e4m3fn, got {a.dtype} and {b.dtype}")
    backend = backend or "torch"
    if backend == "torch":
        return plain.scaled_matmul(a, a_scale, b, b_scale, dtype)
    if backend == "reference":
        return reference.scaled_matmul(a, a_scale, b, b_scale, dtype)
    if backend == "triton":
        from everyformer.ops.scaled_matmul import triton as kernel

        return kernel.scaled_matmul(a, a_scale, b, b_scale, dtype)
    raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
