"""gMLP (arXiv 2105.08050): gates that are a learned matrix over places, in the stead of attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.parts.mixers.base import Cache, Mixer


class GMLP(Mixer):
    """The spatial gating unit between two linear maps (section 2): ``u * (W norm(v) + b)``; ``W`` is ``length`` squared.

    Args:
        expand: width of u and of v over ``dim``.
    """

    needs_length = True

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None, expand: int = 1
    ) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        assert length is not None
        if expand < 1:
            raise ValueError(f"expand must be at least 1, got {expand}")
        self.inside = nn.Linear(dim, 2 * expand * dim)
        self.norm = nn.LayerNorm(expand * dim)
        # Near one at the start, so that tokens go through as they are (section 2.1).
        self.places = nn.Parameter(torch.empty(length, length).uniform_(-0.05, 0.05) / length)
        self.bias = nn.Parameter(torch.ones(length, 1))
        self.out = nn.Linear(expand * dim, dim)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        tokens = x.shape[1]
        left, right = F.gelu(self.inside(x)).chunk(2, dim=-1)
        right = self.norm(right)
        if mask is not None:
            right = right * mask[..., None]
        places = self.places[:tokens, :tokens]
        gates = (places.tril() if self.causal else places) @ right + self.bias[:tokens]
        return self.out(left * gates)  # type: ignore[no-any-return]
