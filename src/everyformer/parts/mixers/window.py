"""Attention to fixed places: a window around a token, every so-manieth token, tokens that all see."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from everyformer.parts.mixers.base import Cache, Mixer, causal_attention, in_order
from everyformer.parts.mixers.blocks import banded, cut


class LocalAttention(Mixer):
    """A token sees those less than ``window`` away (arXiv 1904.10509, 2004.05150); causal, the last ``window`` with itself.

    Args:
        window: tokens that are seen to one side, the token itself among them.

    Raises:
        ValueError: a window below 1.
    """

    takes_cache = True

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None, window: int = 128
    ) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.window = window
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        real = torch.ones_like(x[:1, :, 0], dtype=torch.bool) if mask is None else mask
        if cache is not None:
            mixed = self._read_on(query, key, value, real, cache)
        else:
            mixed = banded(query, key, value, self.window, self.causal, real)
        return self.out(mixed.flatten(2))  # type: ignore[no-any-return]

    def _read_on(self, query: Tensor, key: Tensor, value: Tensor, real: Tensor, cache: Cache) -> Tensor:
        """Attention of tokens that follow others, whose last ``window`` keys and values stand in a ring."""
        (batch, tokens), window = key.shape[:2], self.window
        if not cache:
            ring = (batch, window, *key.shape[2:])
            cache.update(tokens=0, keys=key.new_zeros(ring), values=value.new_zeros(ring))
            cache["real"] = torch.zeros(batch, window, dtype=torch.bool, device=key.device)
        start = cache["tokens"]
        cache["tokens"] = end = start + tokens
        rings = [cache[name] for name in ("keys", "values", "real")]
        if tokens == 1:
            slot = start % window
            if torch.is_grad_enabled():  # what earlier tokens saw must stay for their gradients
                rings = [ring.clone() for ring in rings]
                cache.update(keys=rings[0], values=rings[1], real=rings[2])
            for ring, new in zip(rings, (key, value, real), strict=True):
                ring[:, slot] = new[:, 0]
            allowed = rings[2].clone()
            allowed[:, slot] = True
            query, key, value = (part.transpose(1, 2) for part in (query, *rings[:2]))
            return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed[:, None, None]).transpose(1, 2)
        old = [ring.roll(-start % window, dims=1) for ring in rings]
        mixed = banded(query, key, value, window, True, real, before=(old[0], old[1], old[2]))
        for name, before, new in zip(("keys", "values", "real"), old, (key, value, real), strict=True):
            last = torch.cat([before, new.expand(batch, *new.shape[1:])], dim=1)[:, -window:]
            cache[name] = last.roll(end % window, dims=1)
        return mixed


class StridedAttention(Mixer):
    """Half of the heads see a window of ``stride`` tokens, half every ``stride``-th (Sparse Transformer, arXiv 1904.10509).

    Args:
        stride: of the second half of the heads, and window of the first; the root of ``length`` where that is given.

    Raises:
        ValueError: a stride below 1 or a single head.
    """

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None, stride: int | None = None
    ) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if stride is not None and stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}")
        if heads < 2:
            raise ValueError(f"heads must be at least 2, as they share the two patterns, got {heads}")
        self.stride = stride or (64 if length is None else math.isqrt(length - 1) + 1)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        tokens, near = x.shape[1], self.heads // 2
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        real = torch.ones_like(x[:1, :, 0], dtype=torch.bool) if mask is None else mask
        query, key, value = qkv[:, :, :, :near].unbind(2)
        local = banded(query, key, value, self.stride, self.causal, real)
        # Every stride-th token from one of the first is a sequence of its own: (batch · stride, heads, blocks, head_dim).
        columns = cut(qkv[:, :, :, near:], self.stride).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
        there = None
        if mask is not None or (not self.causal and tokens % self.stride):
            there = cut(real, self.stride).transpose(1, 2).expand(x.shape[0], -1, -1).flatten(0, 1)
        if self.causal:
            far = causal_attention(columns[0], columns[1], columns[2], there)
        else:  # a softmax over nothing is not a number, not even where its result is thrown away
            allowed = None if there is None else (there | ~there.any(dim=-1, keepdim=True))[:, None, None]
            far = F.scaled_dot_product_attention(columns[0], columns[1], columns[2], attn_mask=allowed)
        far = far.unflatten(0, (-1, self.stride)).permute(0, 3, 1, 2, 4).flatten(1, 2)[:, :tokens]
        return self.out(torch.cat([local, far], dim=2).flatten(2))  # type: ignore[no-any-return]


class LongformerAttention(Mixer):
    """A window, and first tokens that all see and that see all by projections of their own (Longformer, arXiv 2004.05150).

    Args:
        window: tokens that are seen to one side, the token itself among them.
        global_tokens: how many of the first tokens are global; causal, they see what was before them.

    Weights of full attention load as they are: the global projections start as copies (section 3.1).

    Raises:
        ValueError: a window or a number of global tokens below 1.
    """

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None,
        window: int = 128, global_tokens: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if window < 1 or global_tokens < 1:
            raise ValueError(f"window and global_tokens must be at least 1, got {window} and {global_tokens}")
        self.window, self.global_tokens = window, global_tokens
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.global_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.global_qkv.load_state_dict(self.qkv.state_dict())
        self.out = nn.Linear(dim, dim, bias=False)
        self.register_load_state_dict_pre_hook(_copy_to_global)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        tokens = x.shape[1]
        first = min(self.global_tokens, tokens)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        real = torch.ones_like(x[:1, :, 0], dtype=torch.bool) if mask is None else mask
        place = torch.arange(tokens, device=x.device)
        # The window leaves the global tokens out, as they stand beside it; their own rows are those of `summary`.
        sinks = (key[:, :first], value[:, :first], real[:, None, :first].expand(-1, tokens, -1))
        local = banded(query, key, value, self.window, self.causal, real & (place >= first), sinks=sinks)
        summary = self._global(x[:, :first] if self.causal else x, real, first)
        return self.out(torch.cat([summary, local[:, first:]], dim=1).flatten(2))  # type: ignore[no-any-return]

    def _global(
        self, x: Float[Tensor, "batch seen dim"], real: Bool[Tensor, "#batch tokens"], first: int
    ) -> Float[Tensor, "batch global heads head_dim"]:
        """What the ``first`` tokens see."""
        weights = self.global_qkv.weight.unflatten(0, (3, -1))
        query = F.linear(x[:, :first], weights[0])
        key, value = F.linear(x, weights[1:].flatten(0, 1)).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        seen = real[:, : x.shape[1]]
        allowed = in_order(first, first, seen, x.device) if self.causal else seen[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed).transpose(1, 2)


def _copy_to_global(module: nn.Module, weights: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Global projections of a checkpoint that has none."""
    if f"{prefix}qkv.weight" in weights:
        weights.setdefault(f"{prefix}global_qkv.weight", weights[f"{prefix}qkv.weight"])
