"""The operator: checks and the choice of backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.ops.varlen_attention import reference
from everyformer.ops.varlen_attention import torch as plain


def varlen_attention(
    query: Float[Tensor, "total heads head_dim"],
    key: Float[Tensor, "total heads head_dim"],
    value: Float[Tensor, "total heads head_dim"],
    lengths: Sequence[int],
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str | None = None,
) -> Float[Tensor, "total heads head_dim"]:
    """Softmax attention of each token over the tokens of its own sequence (arXiv 2210.03052, section III-E).

    Args:
        lengths: tokens of each of the packed sequences, in order; each at least 1.
        scale: of the scores; 1 / sqrt(head_dim) by default.
        dropout: probability of dropping a weight; the torch backend alone has it.
        backend: ``"reference"``, ``"torch"`` or ``"triton"``; by default triton on CUDA and torch elsewhere.

    Raises:
        ValueError: tensors that differ in shape, lengths that do not add up to their tokens, an unknown backend.
    """
    if query.ndim != 3 or key.shape != query.shape or value.shape != query.shape:
        raise ValueError(
            "query, key and value must be (total, heads, head_dim) alike, got "
            f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    lengths = list(lengths)
    if any(length < 1 for length in lengths) or sum(lengths) != len(query):
        raise ValueError(f"lengths must be at least 1 and add up to the {len(query)} tokens, got {lengths}")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    backend = backend or ("triton" if query.is_cuda and not dropout else "torch")
    if backend == "torch":
        return plain.varlen_attention(query, key, value, lengths, scale, dropout)
    if dropout:
        raise ValueError(f"dropout must be 0 with the {backend} backend, got {dropout}")
    if backend == "triton":
        from everyformer.ops.varlen_attention import triton

        return triton.varlen_attention(query, key, value, lengths, scale)
    if backend == "reference":
        ends = torch.tensor([0, *lengths], device=query.device).cumsum(0)
        return reference.varlen_attention(query, key, value, ends, scale)
    raise ValueError(f"backend must be reference, torch or triton, got {backend!r}")
