"""Attention of low rank, and attention without the product of query and key."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from everyformer.parts.mixers.base import Cache, Mixer, causal_attention, join_heads, split_heads


class LinformerAttention(Mixer):
    """Attention to ``features`` weighted sums of the tokens (Linformer, arXiv 2006.04768, equation 7); heads share them.

    Args:
        length: most tokens; the sums' weights are (``features``, ``length``), one matrix for keys, one for values.

    Raises:
        ValueError: features below 1.
    """

    can_be_causal = False
    needs_length = True

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None, features: int = 128
    ) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if features < 1:
            raise ValueError(f"features must be at least 1, got {features}")
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        # Of sums of n tokens with weights of variance 1/n: as large as a token.
        self.sums = nn.Parameter(torch.randn(2, features, self.length or 1) / math.sqrt(self.length or 1))

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        # Sums of tokens are projected instead of projected tokens summed: the same, of features instead of n tokens.
        weights = self.qkv.weight.unflatten(0, (3, -1))
        shown = x if mask is None else x * mask[..., None]
        key, value = (F.linear(self.sums[part, :, : x.shape[1]] @ shown, weights[part + 1]) for part in (0, 1))
        query, key, value = (split_heads(part, self.heads) for part in (F.linear(x, weights[0]), key, value))
        return self.out(join_heads(F.scaled_dot_product_attention(query, key, value)))  # type: ignore[no-any-return]


class NystromAttention(Mixer):
    """Attention through landmarks, the means of stretches of tokens (Nyströmformer, arXiv 2102.03902, equation 13).

    Args:
        landmarks: at most so many; as many as tokens where those are fewer.
        steps: of the iteration towards the pseudo-inverse (equation 11), which starts for every matrix by itself.

    Raises:
        ValueError: landmarks or steps below 1.
    """

    can_be_causal = False

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None,
        landmarks: int = 64, steps: int = 6,
    ) -> None:  # fmt: skip
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if landmarks < 1 or steps < 1:
            raise ValueError(f"landmarks and steps must be at least 1, got {landmarks} and {steps}")
        self.landmarks, self.steps = landmarks, steps
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        means, there = self.means(x, mask)
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        weights = self.qkv.weight[: 2 * self.heads * self.head_dim]  # a mean of queries is the query of the mean
        near_query, near_key = (split_heads(part, self.heads) for part in F.linear(means, weights).chunk(2, dim=-1))
        shown = None if there is None else there[:, None, None]
        real = None if mask is None else mask[:, None, None]
        scores = near_query @ near_key.transpose(-2, -1) / math.sqrt(self.head_dim)
        if there is None:
            between = scores.softmax(dim=-1)
        else:  # a landmark that is not there has neither row nor column, in the inverse neither
            between = scores.masked_fill(~there[:, None, None], float("-inf")).softmax(dim=-1) * there[:, None, :, None]
        gathered = F.scaled_dot_product_attention(near_query, key, value, attn_mask=real)
        gathered = pseudo_inverse(between, self.steps).to(value.dtype) @ gathered
        return self.out(join_heads(F.scaled_dot_product_attention(query, near_key, gathered, attn_mask=shown)))  # type: ignore[no-any-return]

    def means(
        self, x: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"] | None
    ) -> tuple[Float[Tensor, "batch landmarks dim"], Bool[Tensor, "batch landmarks"] | None]:
        """Means of equal stretches of the real tokens, and which of them are there if not all are."""
        batch, tokens = x.shape[:2]
        landmarks = min(self.landmarks, tokens)
        if mask is None and tokens % landmarks == 0:
            return x.unflatten(1, (landmarks, -1)).mean(dim=2), None
        real = torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask
        rank = real.cumsum(dim=1) - 1
        count = real.sum(dim=1, keepdim=True)
        stretch = rank.clamp(min=0) * count.clamp(max=landmarks) // count.clamp(min=1)
        index = (stretch + torch.arange(batch, device=x.device)[:, None] * landmarks).flatten()
        weight = real.flatten().to(x.dtype)
        sums = x.new_zeros(batch * landmarks, x.shape[2]).index_add(0, index, x.flatten(0, 1) * weight[:, None])
        sizes = x.new_zeros(batch * landmarks).index_add(0, index, weight)
        means = (sums / sizes.clamp(min=1)[:, None]).unflatten(0, (batch, landmarks))
        # One landmark is there even in a row without any real token: a softmax over nothing is not a number.
        there = torch.arange(landmarks, device=x.device) < count.clamp(min=1)
        return means, None if mask is None else there


def pseudo_inverse(matrix: Float[Tensor, "*batch n n"], steps: int) -> Float[Tensor, "*batch n n"]:
    """Nearly the Moore-Penrose inverse, by an iteration of third order (arXiv 2102.03902, equation 11)."""
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    size = matrix.abs().sum(dim=-1, keepdim=True).amax(dim=-2, keepdim=True)
    size = size * matrix.abs().sum(dim=-2, keepdim=True).amax(dim=-1, keepdim=True)
    inverse = matrix.transpose(-2, -1) / size
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(steps):
        product = matrix @ inverse
        inverse = inverse @ (13 * one - product @ (15 * one - product @ (7 * one - product))) / 4
    return inverse


class DenseSynthesizer(Mixer):
    """Scores that a token predicts from itself, one for every place (Synthesizer, arXiv 2005.00743, equation 2).

    Its second layer is a key for every place, so that it runs as attention, without a matrix of all pairs; its bias is
    left out, as a constant hidden unit is one.
    """

    needs_length = True

    def __init__(self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        self.hidden = nn.Linear(dim, dim)
        self.places = nn.Parameter(torch.randn(heads, self.length or 1, self.head_dim) / math.sqrt(self.head_dim))
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        query = split_heads(self.hidden(x).relu(), self.heads)
        return self.out(_by_place(query, self.places, split_heads(self.value(x), self.heads), mask, self.causal))  # type: ignore[no-any-return]


class RandomSynthesizer(Mixer):
    """Scores that are weights, whatever the input, as a product of rank ``head_dim`` (arXiv 2005.00743, equation 3 on)."""

    needs_length = True

    def __init__(self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        # Scores of variance one.
        self.places = nn.Parameter(torch.randn(2, heads, self.length or 1, self.head_dim) / self.head_dim**0.25)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        query = self.places[0, :, : x.shape[1]].expand(len(x), -1, -1, -1)
        return self.out(_by_place(query, self.places[1], split_heads(self.value(x), self.heads), mask, self.causal))  # type: ignore[no-any-return]


def _by_place(
    query: Float[Tensor, "batch heads tokens head_dim"],
    places: Float[Tensor, "heads length head_dim"],
    value: Float[Tensor, "batch heads tokens head_dim"],
    mask: Bool[Tensor, "batch tokens"] | None,
    causal: bool,
) -> Float[Tensor, "batch tokens dim"]:
    """Attention with a learned key for every place."""
    tokens = value.shape[2]
    key = places[:, :tokens].expand(len(value), -1, -1, -1)
    if causal:
        return join_heads(causal_attention(query, key, value, mask, scale=1.0))
    allowed = None if mask is None else mask[:, None, None]
    return join_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=1.0))
