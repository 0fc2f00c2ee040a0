"""A transformer block for two streams: the text, and the candidates that read it (arXiv 2507.02092, appendix C)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from everyformer.parts.dit import modulate
from everyformer.parts.language import Attention, Cache, SwiGLU

KeysValues = list[tuple[Tensor, Tensor]]
"""By layer, each (batch, heads, tokens, head_dim)."""
_Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """Attention and SwiGLU for two streams with the same weights: the text, and the candidates that read it."""

    def __init__(self, dim: int, heads: int, hidden: int, *, conditioned: bool, eps: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim, eps)
        self.attention = Attention(dim, heads)
        self.mlp_norm = nn.RMSNorm(dim, eps)
        self.mlp = SwiGLU(dim, hidden)
        self.adaptive = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim)) if conditioned else None

    def read(
        self, x: Float[Tensor, "batch tokens dim"], table: Tensor, condition: Tensor, cache: tuple[Cache, int] | None
    ) -> tuple[Float[Tensor, "batch tokens dim"], tuple[Tensor, Tensor]]:
        """The text's stream, and this layer's keys and values of all tokens so far."""

        kept: KeysValues = []

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            kept.append((key, value) if cache is None else cache[0].extended(cache[1], key, value))
            count, total = query.shape[2], kept[0][0].shape[2]
            if count == total:
                return F.scaled_dot_product_attention(query, *kept[0], is_causal=True)
            seen = torch.ones(count, total, dtype=torch.bool, device=x.device).tril(total - count)
            return F.scaled_dot_product_attention(query, *kept[0], attn_mask=seen)

        return self._around(x, table, condition, attend), kept[0]

    def weigh(
        self,
        x: Float[Tensor, "batch candidates dim"],
        table: Tensor,
        condition: Tensor,
        keys_values: tuple[Tensor, Tensor],
        hidden: Bool[Tensor, "candidates tokens"],
    ) -> Float[Tensor, "batch candidates dim"]:
        """The candidates' stream: each attends to the tokens that are not hidden from it, and to itself.

        Written out, because fused attention cannot be differentiated twice.
        """

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = keys_values
            query = query / math.sqrt(query.shape[-1])
            to_text = (query @ keys.mT).masked_fill(hidden, -torch.inf)
            to_itself = (query * key).sum(-1, keepdim=True)
            weights = torch.cat([to_text, to_itself], -1).softmax(-1).to(value.dtype)
            return weights[..., :-1] @ values + weights[..., -1:] * value

        return self._around(x, table, condition, attend)

    def _around(self, x: Tensor, table: Tensor, condition: Tensor, attend: _Attend) -> Tensor:
        """What both streams share."""
        if self.adaptive is None:
            x = x + self._attention(self.attention_norm(x), table, attend)
            return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaptive(condition).chunk(6, -1)
        x = x + gate1[:, None] * self._attention(modulate(self.attention_norm(x), shift1, scale1), table, attend)
        return x + gate2[:, None] * self.mlp(modulate(self.mlp_norm(x), shift2, scale2))  # type: ignore[no-any-return]

    def _attention(self, x: Tensor, table: Tensor, attend: _Attend) -> Tensor:
        mixed = attend(*self.attention.project(x, table))
        return self.attention.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
