"""Tokens in blocks of equal size: what the mixers that look at windows and blocks share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


def cut(
    x: Shaped[Tensor, "batch tokens *rest"], size: int, before: int = 0, after: int = 0
) -> Shaped[Tensor, "batch blocks {size} *rest"]:
    """Blocks of ``size`` tokens, zeros (or ``False``) filling the last one.

    Args:
        before, after: blocks of zeros that are added at the two ends.
    """
    short = -x.shape[1] % size
    if short or before or after:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (before * size, short + after * size))
    return x.unflatten(1, (-1, size))


def neighbours(x: Shaped[Tensor, "batch blocks size *rest"], count: int) -> Shaped[Tensor, "batch windows seen *rest"]:
    """Every ``count`` blocks in a row, joined."""
    windows = x.shape[1] - count + 1
    return torch.cat([x[:, first : first + windows] for first in range(count)], dim=2)


def attend(
    query: Float[Tensor, "batch blocks size heads head_dim"],
    key: Float[Tensor, "batch blocks seen heads head_dim"],
    value: Float[Tensor, "batch blocks seen heads head_dim"],
    allowed: Bool[Tensor, "#batch blocks size seen"],
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Softmax attention of every block's tokens to the tokens that are given for the block."""
    batch, blocks = query.shape[:2]
    query, key, value = (part.flatten(0, 1).transpose(1, 2) for part in (query, key, value))
    allowed = allowed.expand(batch, -1, -1, -1).flatten(0, 1).unsqueeze(1)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    return mixed.transpose(1, 2).unflatten(0, (batch, blocks)).flatten(1, 2)


def banded(
    query: Float[Tensor, "batch tokens heads head_dim"],
    key: Float[Tensor, "batch tokens heads head_dim"],
    value: Float[Tensor, "batch tokens heads head_dim"],
    window: int,
    causal: bool,
    real: Bool[Tensor, "#batch tokens"],
    before: tuple[Tensor, Tensor, Tensor] | None = None,
    sinks: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Attention of every token to those less than ``window`` away, itself among them.

    Args:
        real: which keys may be seen; a token sees itself in any case, as a softmax over nothing is not a number.
        before: keys, values and ``real`` of the ``window`` tokens before these.
        sinks: keys, values and ``real`` (batch, tokens, sinks) of tokens seen from wherever it says.
    """
    tokens, after = query.shape[1], int(not causal)
    spans = [neighbours(cut(part, window, 1, after), 2 + after) for part in (key, value)]
    seen = cut(real, window, 1, after)
    if before is not None:
        for span, old in zip(spans, before, strict=False):
            span[:, 0, :window] = old
        seen = seen.expand(query.shape[0], -1, -1).clone()
        seen[:, 0] = before[2]
    place = torch.arange(window, device=query.device)[:, None]
    apart = place + window - torch.arange((2 + after) * window, device=query.device)
    band = (apart.abs() < window) & ((apart >= 0) | (not causal))
    allowed = (neighbours(seen, 2 + after)[:, :, None] & band) | (apart == 0)
    if sinks is not None:
        blocks = spans[0].shape[1]
        spans = [
            torch.cat([part[:, None].expand(-1, blocks, -1, -1, -1), span], dim=2)
            for part, span in zip(sinks, spans, strict=False)
        ]
        batch = max(allowed.shape[0], sinks[2].shape[0])
        columns = cut(sinks[2], window)
        allowed = torch.cat([part.expand(batch, -1, -1, -1) for part in (columns, allowed)], dim=3)
    return attend(cut(query, window), spans[0], spans[1], allowed)[:, :tokens]
