"""Attention by features of queries and keys: sums over tokens instead of a matrix of all pairs."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.parts.mixers.base import Cache, Mixer, join_heads, split_heads


class LinearAttention(Mixer):
    """Attention with the features elu + 1 (arXiv 2006.16236, equation 7); its cache is one matrix a head.

    Among the nodes of graphs instead of tokens it is what a virtual node can imitate (arXiv 2301.11956).

    Args:
        chunk: tokens that are mixed at once where it is causal; the sums go from chunk to chunk.

    Raises:
        ValueError: a chunk below 1.
    """

    takes_cache = True

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None, chunk: int = 64
    ) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        self.chunk = chunk
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        query, key = self.features(query, key, mask, cache)
        if self.causal:
            mixed, after = causal_sums(query, key, value, self.chunk, None if cache is None else cache.get("sums"))
            if cache is not None:
                cache["sums"] = after
        else:
            norm = query @ key.sum(dim=2).unsqueeze(-1)
            mixed = query @ (key.transpose(2, 3) @ value) / norm.clamp(min=_smallest(norm))
        return self.out(join_heads(mixed))  # type: ignore[no-any-return]

    def features(
        self,
        query: Float[Tensor, "batch heads tokens head_dim"],
        key: Float[Tensor, "batch heads tokens head_dim"],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Float[Tensor, "batch heads tokens features"], Float[Tensor, "batch heads tokens features"]]:
        """Features of queries and keys, none below zero; those of tokens that are not real are zero."""
        query, key = (elu_and_one(part.contiguous()) for part in (query, key))  # products copy them anyway
        return query, key if mask is None else key * mask[:, None, :, None]


class PerformerAttention(LinearAttention):
    """Softmax attention by positive random features (FAVOR+, arXiv 2009.14794, lemma 1 and section 2.4).

    Among the nodes of graphs instead of tokens it is what a virtual node can imitate (arXiv 2301.11956).

    Args:
        features: random directions, orthogonal within each ``head_dim`` of them; about ``head_dim`` · ln ``head_dim``
            where it is not given. The error shrinks as their number grows.
        chunk: tokens that are mixed at once where it is causal.

    The directions are part of the state; :meth:`redraw` draws others, which the paper does during training. Weights of
    full attention, which have none, load as they are.

    Raises:
        ValueError: features or a chunk below 1.
    """

    directions: Tensor

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None,
        features: int | None = None, chunk: int = 64,
    ) -> None:  # fmt: skip
        super().__init__(dim, heads=heads, causal=causal, length=length, chunk=chunk)
        if features is not None and features < 1:
            raise ValueError(f"features must be at least 1, got {features}")
        count = features or max(8, round(self.head_dim * math.log(self.head_dim)))
        self.register_buffer("directions", torch.empty(count, self.head_dim))
        self.redraw()
        self.register_load_state_dict_pre_hook(_keep_directions)

    @torch.no_grad()
    def redraw(self) -> None:
        """Draw other directions: orthogonal, and as long as those of normal numbers."""
        count, width = self.directions.shape
        blocks = rotation(torch.randn(-(-count // width), width, width)).flatten(0, 1)[:count]
        self.directions.copy_(blocks * torch.randn(count, width).norm(dim=1, keepdim=True))

    def features(self, query: Tensor, key: Tensor, mask: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor]:
        # exp(wᵀx - |x|²/2). A direction's features of keys are divided by their largest, those of queries multiplied by
        # it and divided by the largest of their query: the quotient of the sums stays, and nothing overflows.
        wide = torch.promote_types(query.dtype, torch.float32)
        raw_query, raw_key = (random_exponents(part.to(wide), self.directions) for part in (query, key))
        if mask is not None:
            raw_key = raw_key.masked_fill(~mask[:, None, :, None], float("-inf"))
        top = raw_key.detach().amax(dim=2, keepdim=True).clamp(min=-1e9)  # where no key is real
        if cache is not None:
            if "sums" in cache:
                before = cache["top"]
                top = torch.maximum(top, before)
                shrink = (before - top).exp()
                cache["sums"] = (cache["sums"][0] * shrink.transpose(2, 3), cache["sums"][1] * shrink[:, :, 0])
            cache["top"] = top
        raw_query = raw_query + top
        raw_query = raw_query - raw_query.detach().amax(dim=-1, keepdim=True)
        return raw_query.exp().to(query.dtype), (raw_key - top).exp().to(key.dtype)


def _keep_directions(module: PerformerAttention, weights: dict[str, Any], prefix: str, *rest: Any) -> None:
    """The mixer's own directions where a checkpoint has none."""
    weights.setdefault(f"{prefix}directions", module.directions)


def causal_sums(
    query: Float[Tensor, "batch heads tokens features"],
    key: Float[Tensor, "batch heads tokens features"],
    value: Float[Tensor, "batch heads tokens head_dim"],
    chunk: int,
    before: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, tuple[Float[Tensor, "batch heads features head_dim"], Float[Tensor, "batch heads features"]]]:
    """Attention of every token to itself and those before it, and the sums of all.

    Within a chunk, pairs of tokens; from chunk to chunk, sums of ``key ⊗ value`` and of ``key``.

    Args:
        before: the sums of the tokens before these.
    """
    tokens, wide = value.shape[2], torch.promote_types(value.dtype, torch.float32)
    short = -tokens % min(chunk, tokens)
    query, key, value = (
        (F.pad(part, (0, 0, 0, short)) if short else part).unflatten(2, (-1, min(chunk, tokens)))
        for part in (query, key, value)
    )
    outer = (key.transpose(-2, -1) @ value).cumsum(dim=2, dtype=wide)
    total = key.sum(dim=3, dtype=wide).cumsum(dim=2)
    if before is not None:
        outer, total = outer + before[0].unsqueeze(2), total + before[1].unsqueeze(2)
    after = (outer[:, :, -1], total[:, :, -1])
    first = (torch.zeros_like(after[0]), torch.zeros_like(after[1])) if before is None else before
    outer = torch.cat([first[0].unsqueeze(2), outer[:, :, :-1]], dim=2).to(value.dtype)
    total = torch.cat([first[1].unsqueeze(2), total[:, :, :-1]], dim=2).to(value.dtype)
    pairs = (query @ key.transpose(-2, -1)).tril()
    norm = pairs.sum(dim=-1, keepdim=True) + query @ total.unsqueeze(-1)
    mixed = (pairs @ value + query @ outer) / norm.clamp(min=_smallest(norm))
    return mixed.flatten(2, 3)[:, :, :tokens], after


def elu_and_one(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """elu + 1 without the exponential's accurate difference to one, which costs more than all the rest."""
    above = x.relu()
    return (x - above).exp() + above


def rotation(normal: Float[Tensor, "*batch dim dim"]) -> Float[Tensor, "*batch dim dim"]:
    """Orthogonal matrices, drawn uniformly where ``normal`` holds normal numbers.

    Without the signs QR prefers some directions, and a kernel that is estimated along them is biased.
    """
    turned, upper = torch.linalg.qr(normal)
    return turned * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def random_exponents(
    x: Float[Tensor, "*batch head_dim"], directions: Float[Tensor, "features head_dim"]
) -> Float[Tensor, "*batch features"]:
    """``w·s - |s|²/2`` with ``s = x / head_dim^(1/4)``, for rows w of ``directions`` (arXiv 2009.14794, lemma 1).

    Where the rows are normal numbers, the mean over them of the product of two such exponentials, of a query q and a key
    k, is on average ``exp(q·k / √head_dim)``.
    """
    x = x * x.shape[-1] ** -0.25
    return x @ directions.to(x.dtype).T - x.square().sum(dim=-1, keepdim=True) / 2


def _smallest(norm: Tensor) -> float:
    """Below any norm that comes about, with an inverse that gradients can be multiplied by."""
    return max(torch.finfo(norm.dtype).tiny, 1e-19)
