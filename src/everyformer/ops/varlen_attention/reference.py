"""Attention among packed sequences by the equations, with one masked matrix over all tokens: the truth."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def varlen_attention(
    query: Float[Tensor, "total heads head_dim"],
    key: Float[Tensor, "total heads head_dim"],
    value: Float[Tensor, "total heads head_dim"],
    cu_seqlens: Int[Tensor, "sequences+1"],
    scale: float,
) -> Float[Tensor, "total heads head_dim"]:
    """Softmax attention of each token over its own sequence."""
    sequence = torch.bucketize(torch.arange(len(query), device=query.device), cu_seqlens[1:], right=True)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    scores = scores.masked_fill(sequence[:, None] != sequence[None, :], -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
