"""What all token mixers share: their signature, its checks, and the heads."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

Mask = Bool[Tensor, "batch tokens"]
Cache = dict[str, Any]  # empty before the first token; a mixer keeps in it what it needs of the tokens read
ROWS = 256  # queries that are mixed at once where each needs a mask of its own


class Mixer(nn.Module):
    """Lets tokens see each other: ``mixer(x, mask=None, cache=None)`` gives what is added to ``x``.

    Args:
        dim: width of a token, a multiple of ``heads``.
        causal: whether a token sees only itself and those before it.
        length: most tokens, where the weights depend on it; ``None`` for mixers that take any number.

    Raises:
        ValueError: a width that does not divide, sizes that are no integers, a missing length or one below 1, or causal
            where the mixer cannot be.
    """

    can_be_causal: ClassVar[bool] = True
    must_be_causal: ClassVar[bool] = False
    needs_length: ClassVar[bool] = False
    takes_mask: ClassVar[bool] = True
    takes_cache: ClassVar[bool] = False

    def __init__(self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None) -> None:
        super().__init__()
        name = type(self).__name__
        for what, size in (("dim", dim), ("heads", heads), ("length", 1 if length is None else length)):
            if not isinstance(size, Integral):
                raise ValueError(f"{what} must be an integer, got {size!r}")
        if heads < 1 or dim < 1 or dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}")
        if causal and not self.can_be_causal:
            raise ValueError(f"causal must be False for {name}: every token sees all")
        if not causal and self.must_be_causal:
            raise ValueError(f"causal must be True for {name}: it reads from left to right")
        if self.needs_length and length is None:
            raise ValueError(f"length must be given for {name}, whose weights depend on it, got None")
        if length is not None and length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self.dim, self.heads, self.head_dim = dim, heads, dim // heads
        self.causal, self.length = causal, length

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Mask | Integer[Tensor, "batch tokens"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Mixed tokens.

        Args:
            mask: which tokens are real, as booleans or as the zeros and ones of a tokenizer; what stands at the others is
                seen by none, and their outputs mean nothing.
            cache: a dictionary that is empty before the first token; ``x`` are then the tokens after those it has seen.

        Raises:
            ValueError: another width, no tokens or more than ``length``, a mask that is not one, a cache of other rows, or
                a mask or cache that the mixer does not take.
        """
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x must be (batch, tokens, {self.dim}), got {shape}")
        if x.shape[1] < 1:
            raise ValueError(f"x must have at least one token, got {shape}")
        if self.length is not None and self.needs_length and x.shape[1] > self.length:
            raise ValueError(f"x must have at most length {self.length} tokens, got {x.shape[1]}")
        if mask is not None:
            if not self.takes_mask:
                raise ValueError(f"mask must be None for {type(self).__name__}: it has no way to leave tokens out")
            mask = _as_booleans(mask, x)
        if cache is not None and not (self.takes_cache and self.causal):
            raise ValueError(f"cache must be None for {type(self).__name__} with causal={self.causal}")
        if cache is not None and cache.get("batch", len(x)) != len(x):
            raise ValueError(f"cache must be of as many rows as x, {len(x)}, got one of {cache['batch']}")
        mixed = self.mix(x, mask, cache)
        if cache is not None:
            cache["batch"] = len(x)  # after the mixing, as a cache is empty before the first token
        return mixed

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """The mixing itself, its input checked."""
        raise NotImplementedError


def _as_booleans(mask: Any, x: Float[Tensor, "batch tokens dim"]) -> Mask:
    """A mask as the mixers use it; ``ValueError`` where it is not one of the tokens of ``x``.

    A mask of floats could be a bias on scores, of which the zeros are seen, so none is taken.
    """
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        what = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask must be a tensor of booleans, or of integers that are 0 or 1, got {what}")
    if mask.shape != x.shape[:2]:
        raise ValueError(f"mask must be {tuple(x.shape[:2])}, got {tuple(mask.shape)}")
    # Compiled code cannot look at values.
    if mask.dtype != torch.bool and not torch.compiler.is_compiling() and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"mask must be of zeros and ones, got {int(mask.min())} to {int(mask.max())}")
    return mask.bool()


def causal_attention(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads seen head_dim"],
    value: Float[Tensor, "batch heads seen head_dim"],
    real: Bool[Tensor, "batch seen"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Softmax attention of the last ``tokens`` of ``seen`` to themselves and those before them, without all pairs' matrix.

    Args:
        real: which of those seen are there for others.
        scale: of the scores, 1 / √head_dim by default.
    """
    tokens, seen = query.shape[2], key.shape[2]
    if real is None and tokens in (1, seen):
        return F.scaled_dot_product_attention(query, key, value, is_causal=tokens > 1, scale=scale)
    if real is not None and tokens == seen:
        # With the real ones first, in their order, no real one comes after one that is not.
        order = (~real).sort(dim=1, stable=True).indices
        query, key, value = (part.take_along_dim(order[:, None, :, None], dim=2) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        return mixed.take_along_dim(order.argsort(dim=1)[:, None, :, None], dim=2)
    blocks = []
    for start in range(0, tokens, ROWS):
        rows = query[:, :, start : start + ROWS]
        end = seen - tokens + start + rows.shape[2]
        allowed = in_order(rows.shape[2], end, None if real is None else real[:, :end], query.device)
        blocks.append(
            F.scaled_dot_product_attention(rows, key[:, :, :end], value[:, :, :end], attn_mask=allowed, scale=scale)
        )
    return torch.cat(blocks, dim=2)


def in_order(
    tokens: int, seen: int, real: Bool[Tensor, "batch seen"] | None, device: torch.device
) -> Bool[Tensor, "#batch 1 {tokens} {seen}"]:
    """Which of ``seen`` keys the last ``tokens`` of them see: those before them that are real, and themselves.

    A token sees itself even where it is not real, as a softmax over nothing is not a number.
    """
    place = torch.arange(seen, device=device)
    itself = place == place[seen - tokens :, None]
    order = place <= place[seen - tokens :, None]
    return order[None, None] if real is None else (order & real[:, None, None]) | itself


def split_heads(x: Float[Tensor, "batch tokens dim"], heads: int) -> Float[Tensor, "batch heads tokens head_dim"]:
    """The heads of a width, one after the other."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Float[Tensor, "batch heads tokens head_dim"]) -> Float[Tensor, "batch tokens dim"]:
    """Back to one width."""
    return x.transpose(1, 2).flatten(2)
