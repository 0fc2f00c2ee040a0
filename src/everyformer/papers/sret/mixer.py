"""Sliced recursive attention as a token mixer (arXiv 2111.05297, section 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.sret.model import fixed_permutation
from everyformer.parts.mixers import Mixer, join_heads, split_heads
from everyformer.parts.mixers.base import Cache


class SlicedRecursiveAttention(Mixer):
    """Attention inside groups of the sequence, again with the same weights and other groups: what all passes add.

    The first pass takes neighbours together, the later ones tokens from all over. Tokens that do not divide into groups
    are filled up, and what fills up is seen by none; padding would move the groups, so it cannot be left out. One group
    and one pass are full attention.

    Args:
        groups: slices in each pass.
        loops: passes.
    """

    can_be_causal = False
    takes_mask = False

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        causal: bool = False,
        length: int | None = None,
        groups: int = 4,
        loops: int = 2,
    ) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if groups < 1 or loops < 1:
            raise ValueError(f"groups and loops must be at least 1, got {groups} and {loops}")
        self.groups, self.loops = groups, loops
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        added = self._sliced(x)
        for _ in range(1, self.loops):
            order = torch.tensor(fixed_permutation(x.shape[1]), device=x.device)
            added = added + self._sliced((x + added)[:, order])[:, order.argsort()]
        return added

    def _sliced(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        batch, tokens, _ = x.shape
        missing = -tokens % self.groups
        folded = F.pad(x, (0, 0, 0, missing)).reshape(batch * self.groups, -1, self.dim)  # groups join the batch
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(folded).chunk(3, dim=-1))
        allowed = None
        if missing:
            real = torch.arange(tokens + missing, device=x.device) < tokens
            # A token sees itself even where it is not real: a softmax over nothing is not a number.
            itself = torch.eye(folded.shape[1], dtype=torch.bool, device=x.device)
            allowed = (real.view(self.groups, 1, 1, -1) | itself).repeat(batch, 1, 1, 1)
        mixed = join_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=allowed))
        return self.out(mixed).reshape(batch, -1, self.dim)[:, :tokens]  # type: ignore[no-any-return]
