"""AdaptMLP, the branch of AdaptFormer beside a frozen MLP (arXiv 2205.13535, section 3.2).

For the tokens x' that a block has after its attention (the input of the norm before its MLP), the block gives

    x' + MLP(LN(x')) + s * ReLU(LN(x') W_down) W_up

where only W_down, W_up and their biases are trained. The branch has a norm of its own, or none: the authors' trainings
of pictures and videos have none, so none is the default here. W_up and the biases start at zero: at first the adapted
network is the frozen one.
"""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn, ones

LAYERNORMS = ("none", "in", "out")
LEARNABLE = "learnable"


class AdaptMLP(nn.Module):
    """The bottleneck branch, without the residual: ``s * ReLU(x W_down + b) W_up + b``, scaled as a whole.

    Args:
        dim: width of the tokens.
        bottleneck: width in between; the paper's AdaptFormer-64 has 64.
        scale: s, a number, or ``"learnable"`` for a trained one that starts at 1.
        layernorm: where a norm of the branch's own sits: ``"in"`` before the first product, ``"out"`` after the
            scale, or ``"none"``.
        dropout: share of the bottleneck's values dropped in training.

    Raises:
        ValueError: ``dim`` or ``bottleneck`` below 1, an unknown ``layernorm``, a ``scale`` that is neither a number
            nor ``"learnable"``, ``dropout`` outside [0, 1).
    """

    def __init__(
        self,
        dim: int,
        bottleneck: int = 64,
        *,
        scale: float | Literal["learnable"] = 0.1,
        layernorm: str = "none",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        check_options(bottleneck, scale, layernorm, dropout)
        self.layernorm, self.dropout = layernorm, dropout
        self.norm = nn.LayerNorm(dim) if layernorm != "none" else None
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        self.scale: float | nn.Parameter = nn.Parameter(ones(1)) if isinstance(scale, str) else float(scale)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Float[Tensor, "*batch tokens dim"]) -> Float[Tensor, "*batch tokens dim"]:
        """What the branch adds to the block's output (equation 2)."""
        if self.norm is not None and self.layernorm == "in":
            x = self.norm(x)
        hidden = F.dropout(self.down(x).relu(), self.dropout, self.training)
        added: Tensor = self.up(hidden) * self.scale
        if self.norm is not None and self.layernorm == "out":
            added = self.norm(added)
        return added


def check_options(bottleneck: int, scale: float | str, layernorm: str, dropout: float) -> None:
    """Raise the ValueErrors of :class:`AdaptMLP`'s options."""
    if bottleneck < 1:
        raise ValueError(f"bottleneck must be at least 1, got {bottleneck}")
    if layernorm not in LAYERNORMS:
        raise ValueError(f"layernorm must be one of {LAYERNORMS}, got {layernorm!r}")
    if not isinstance(scale, int | float) and scale != LEARNABLE:
        raise ValueError(f"scale must be a number or {LEARNABLE!r}, got {scale!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
