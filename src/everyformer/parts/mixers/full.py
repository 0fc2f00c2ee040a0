"""Full attention (arXiv 1706.03762), by scaled dot-product attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from everyformer.parts.growing import grown
from everyformer.parts.mixers.base import Cache, Mixer, causal_attention, join_heads, split_heads


class FullAttention(Mixer):
    """Every token sees every token, or every one before it; query, key and value stand in one matrix."""

    takes_cache = True

    def __init__(self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        if cache is not None:
            key, value, mask = _remember(cache, key, value, mask)
        if self.causal:
            mixed = causal_attention(query, key, value, mask)
        else:
            allowed = None if mask is None else mask[:, None, None]
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.out(join_heads(mixed))  # type: ignore[no-any-return]


def _remember(
    cache: Cache,
    key: Float[Tensor, "batch heads new head_dim"],
    value: Float[Tensor, "batch heads new head_dim"],
    mask: Bool[Tensor, "batch new"] | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and mask of all tokens so far, in buffers with room for more."""
    start = cache.get("tokens", 0)
    cache["tokens"] = end = start + key.shape[2]
    for name, new in (("keys", key), ("values", value)):
        cache[name] = grown(cache.get(name), start, new, dim=2)
    before = cache.get("mask")
    if mask is not None or before is not None:
        new = torch.ones_like(key[:, 0, :, 0], dtype=torch.bool) if mask is None else mask
        old = torch.ones_like(new[:, :1]).expand(-1, start) if before is None else before
        mask = cache["mask"] = torch.cat([old, new], dim=1)
    return cache["keys"][:, :, :end], cache["values"][:, :, :end], mask
