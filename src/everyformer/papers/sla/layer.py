"""SLA: attention that is exact where it matters and linear elsewhere (arXiv 2509.24006)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.ops.sparse_linear_attention import FEATURE_MAPS, projected


class SparseLinearAttention(nn.Module):
    """Softmax attention over critical blocks plus a learned projection of linear attention over marginal ones.

    ``O = O_sparse + Proj(O_linear)`` (arXiv 2509.24006, equation 7). ``Proj`` is shared by all heads and zero at the
    start, so a pretrained model begins as its sparse-attention self and is then fine-tuned. Nothing is learned about
    which block is of which kind: blocks are ranked by pooled queries and keys, undifferentiated.

    Args:
        head_dim: width of a head, at least 1.
        critical: fraction of key blocks that each query block attends to exactly, rounded down but at least one block;
            0 leaves the linear branch alone.
        negligible: fraction of key blocks that each query block ignores.
        block: tokens in a block; lengths need not be multiples of it.
        feature_map: of the linear branch: ``"softmax"`` (over features), ``"elu"`` (+ 1) or ``"relu"``.
        linear_over: ``"marginal"``, the blocks neither critical nor negligible, as in the paper; ``"all"``, every block,
            as in the authors' later code.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        head_dim: int,
        critical: float = 0.05,
        negligible: float = 0.10,
        block: int = 64,
        feature_map: str = "softmax",
        linear_over: str = "marginal",
    ) -> None:
        super().__init__()
        for name, size in (("head_dim", head_dim), ("block", block)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        for name, fraction in (("critical", critical), ("negligible", negligible)):
            if not (math.isfinite(fraction) and 0 <= fraction <= 1):
                raise ValueError(f"{name} must be a fraction in [0, 1], got {fraction}")
        if critical + negligible > 1:
            raise ValueError(f"critical + negligible must be at most 1, got {critical} + {negligible}")
        if feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map must be one of {', '.join(FEATURE_MAPS)}, got {feature_map!r}")
        if linear_over not in ("marginal", "all"):
            raise ValueError(f"linear_over must be 'marginal' or 'all', got {linear_over!r}")
        self.head_dim = head_dim
        self.critical = critical
        self.negligible = negligible
        self.block = block
        self.feature_map = feature_map
        self.linear_over = linear_over
        self.proj = nn.Linear(head_dim, head_dim)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(
        self,
        query: Float[Tensor, "batch heads tokens head_dim"],
        key: Float[Tensor, "batch heads keys head_dim"],
        value: Float[Tensor, "batch heads keys head_dim"],
        is_causal: bool = False,
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """The attention's output; lengths of queries and keys may differ.

        Raises:
            ValueError: another head_dim, ``is_causal``, or values that are not finite (not checked while compiling).
        """
        if is_causal:
            raise ValueError("is_causal must be False: sparse-linear attention has no causal form")
        if query.shape[-1] != self.head_dim:
            raise ValueError(f"query must have head_dim {self.head_dim}, got {query.shape[-1]}")
        if not torch.compiler.is_compiling():
            self._check_finite(query=query, key=key, value=value)
        return projected(
            query,
            key,
            value,
            self.proj.weight,
            self.proj.bias,
            critical=self.critical,
            negligible=self.negligible,
            block=self.block,
            feature_map=self.feature_map,
            linear_over=self.linear_over,
        )

    def extra_repr(self) -> str:
        """The settings, as printing the module shows them."""
        return (
            f"head_dim={self.head_dim}, critical={self.critical}, negligible={self.negligible}, block={self.block}, "
            f"feature_map={self.feature_map!r}, linear_over={self.linear_over!r}"
        )

    @staticmethod
    def _check_finite(**tensors: Tensor) -> None:
        # A sum is the cheapest pass over a tensor, and not finite when any element is not.
        sums = torch.stack([tensor.detach().sum(dtype=torch.float32) for tensor in tensors.values()])
        if not sums.isfinite().all():
            name = next(name for name, total in zip(tensors, sums, strict=True) if not total.isfinite())
            raise ValueError(f"{name} must be finite, it holds nan or infinite values")
