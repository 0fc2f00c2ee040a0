"""Retention (RetNet, arXiv 2307.08621): attention without a softmax whose weights fall with distance at a fixed rate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.parts.language import rotary, rotate
from everyformer.parts.mixers.base import Cache, Mixer, join_heads, split_heads
from everyformer.parts.mixers.ssd import decayed_attention


class Retention(Mixer):
    """Multi-scale retention (equations 5 to 8): each head forgets at a rate of its own, 1/32 of what is kept, 1/64, ...

    The gates are constants, so it is :class:`~everyformer.parts.mixers.ssd.SSD` with a fixed decay; a turn by position
    tells near keys from far ones. Padding takes its places, so only its content is left out.
    """

    must_be_causal = True
    takes_cache = True

    def __init__(self, dim: int, *, heads: int = 4, causal: bool = True, length: int | None = None) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if self.head_dim % 2:
            raise ValueError(f"dim / heads must be even, got {self.head_dim}")
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        if mask is not None:
            value = value * mask[:, None, :, None]
        tokens = x.shape[1]
        start = 0 if cache is None else cache.get("tokens", 0)
        table = rotary(torch.arange(start, start + tokens, device=x.device), self.head_dim).to(x.dtype)
        query, key = rotate(query, table), rotate(key, table) * self.head_dim**-0.5
        log_decay = torch.log1p(-(2.0 ** -torch.arange(5.0, 5.0 + self.heads, device=x.device)))
        log_decay = log_decay[None, :, None].expand(1, -1, tokens)
        mixed, state = decayed_attention(query, key, value, log_decay, None if cache is None else cache.get("state"))
        if cache is not None:
            cache["state"], cache["tokens"] = state, start + tokens
        # The norm makes up for sums that grow with the number of tokens kept.
        mixed = join_heads(F.rms_norm(mixed, (self.head_dim,), eps=1e-6))
        return self.out(F.silu(self.gate(x)) * mixed)  # type: ignore[no-any-return]
