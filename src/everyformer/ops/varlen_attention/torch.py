"""Attention among packed sequences in plain torch: the library's own attention, sequence by sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def varlen_attention(
    query: Float[Tensor, "total heads head_dim"],
    key: Float[Tensor, "total heads head_dim"],
    value: Float[Tensor, "total heads head_dim"],
    lengths: list[int],
    scale: float,
    dropout: float,
) -> Float[Tensor, "total heads head_dim"]:
    """Softmax attention within each of the sequences of ``lengths``, as views of the packed tensors."""
    parts = []
    for part in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        # Views (1, heads, length, head_dim): the library's flash attention takes them without a copy.
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in part)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
        parts.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(parts)
