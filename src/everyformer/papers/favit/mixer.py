"""Factorised self-attention over a sequence instead of a map, as a token mixer (arXiv 2312.08614, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.favit.model import places
from everyformer.parts.mixers import Mixer, join_heads, split_heads
from everyformer.parts.mixers.base import Cache


class FactorizedMixer(Mixer):
    """Each head's channels in three groups: one attends to a coarse sequence, two to keys fused across windows.

    A seventh and more of a head's width is left to the coarse group, an eighth where the head is a multiple of 16 wide.
    All tokens are seen, none by itself, so padding cannot be left out.

    Args:
        window: tokens of a window, and keys of each window group.
        reduction: tokens that one coarse key stands for, and the dilation of the third group's windows.
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
        window: int = 32,
        reduction: int = 8,
    ) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if window < 1 or reduction < 2:
            raise ValueError(f"window must be at least 1 and reduction 2, got {window} and {reduction}")
        fine = 7 * self.head_dim // 16
        if fine < 1:
            raise ValueError(f"dim / heads must be at least 3, got {self.head_dim}")
        self.window, self.reduction = window, reduction
        self.sizes = (self.head_dim - 2 * fine, fine, fine)
        self.query, self.tokens, self.out = (nn.Linear(dim, dim) for _ in range(3))
        coarse = self.sizes[0] * heads
        self.reduce = nn.Conv1d(coarse, coarse, reduction, reduction)
        self.norm = nn.LayerNorm(coarse)
        self.coarse = nn.Linear(coarse, 2 * coarse)
        self.across = nn.ModuleList(nn.Linear(fine, fine) for _ in range(2))
        self.keys_values = nn.ModuleList(nn.Linear(fine, 2 * fine) for _ in range(2))
        self.neighbours = nn.Conv1d(dim, dim, 3, padding=1, groups=dim)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        x = x + self.neighbours(x.transpose(1, 2)).transpose(1, 2)
        queries = split_heads(self.query(x), self.heads).split(self.sizes, dim=-1)
        tokens = split_heads(self.tokens(x), self.heads).split(self.sizes, dim=-1)
        mixed = [F.scaled_dot_product_attention(queries[0], *self._coarse(join_heads(tokens[0])))]
        for index, dilation in enumerate((1, self.reduction)):
            key, value = self._fused(tokens[index + 1], index, dilation)
            mixed.append(F.scaled_dot_product_attention(queries[index + 1], key, value))
        return self.out(join_heads(torch.cat(mixed, dim=-1)))  # type: ignore[no-any-return]

    def _coarse(self, x: Float[Tensor, "batch tokens dim"]) -> tuple[Tensor, Tensor]:
        """Keys and values of the reduced sequence; what is left at its end is filled up with zeros."""
        x = F.pad(x.transpose(1, 2), (0, -x.shape[1] % self.reduction))
        reduced = self.norm(self.reduce(x).transpose(1, 2))
        key, value = self.coarse(reduced).chunk(2, dim=-1)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def _fused(self, x: Float[Tensor, "batch heads tokens width"], index: int, dilation: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the places in a window: means over runs of (window, channel) pairs, as in ``WindowGroup``."""
        held = x[:, :, places(x.shape[2], self.window, dilation, x.device)].unflatten(2, (-1, self.window))
        key = held.transpose(2, 3).flatten(3).unflatten(3, (x.shape[3], -1)).mean(-1)
        key, value = self.keys_values[index](self.across[index](key)).chunk(2, dim=-1)
        return key, value
