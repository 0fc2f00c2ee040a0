"""The transform as a product with the whole matrix: O(n^2), the truth."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from everyformer.ops.hadamard.matrices import hadamard_matrix


def hadamard(x: Float[Tensor, "*rows n"], *, inverse: bool = False) -> Float[Tensor, "*rows n"]:
    """H x for each row x, computed in float64."""
    matrix = hadamard_matrix(x.shape[-1]).to(x.device)
    return (x.double() @ (matrix if inverse else matrix.mT)).to(x.dtype)
