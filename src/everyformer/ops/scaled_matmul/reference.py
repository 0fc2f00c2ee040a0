"""The product of the values that were meant, in float64: the truth."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def scaled_matmul(
    a: Shaped[Tensor, "m k"],
    a_scale: Float[Tensor, ""],
    b: Shaped[Tensor, "k n"],
    b_scale: Float[Tensor, ""],
    dtype: torch.dtype,
) -> Float[Tensor, "m n"]:
    """(a_scale a) (b_scale b)."""
    return ((a.double() @ b.double()) * a_scale.double() * b_scale.double()).to(dtype)
