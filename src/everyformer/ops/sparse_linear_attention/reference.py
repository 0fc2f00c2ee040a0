"""Sparse-linear attention by the equations of arXiv 2509.24006, with an n x n matrix: the truth for other backends."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.ops.sparse_linear_attention.blocks import classify, mask_of, phi

EPSILON = 1e-5
"""Added to the linear branch's normaliser, as in the authors' code."""


def sparse_linear_attention(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys dim"],
    *,
    critical: float = 0.05,
    negligible: float = 0.10,
    block: int = 64,
    feature_map: str = "softmax",
    linear_over: str = "marginal",
) -> tuple[Float[Tensor, "batch heads tokens dim"], Float[Tensor, "batch heads tokens dim"]]:
    """The outputs of the sparse and of the linear branch.

    Sparse: softmax attention over the keys of critical blocks. Linear: ``phi(Q) H / (phi(Q) Z)`` with H and Z summed
    over the keys of marginal blocks, or over all keys.
    """
    tokens, keys = query.shape[2], key.shape[2]
    top, bottom = classify(query.flatten(0, 1), key.flatten(0, 1), critical, negligible, block)
    blocks = mask_of(top, bottom, -(-keys // block)).unflatten(0, query.shape[:2])
    mask = blocks.repeat_interleave(block, 2)[:, :, :tokens].repeat_interleave(block, 3)[..., :keys]

    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    # Without critical blocks a row of nothing but -inf would be nan: the sparse branch is zero then.
    exact = scores.masked_fill(mask != 1, -torch.inf).softmax(-1) if top.shape[-1] else torch.zeros_like(scores)
    sparse = exact @ value

    weights = phi(query, feature_map) @ phi(key, feature_map).transpose(-1, -2)
    if linear_over == "marginal":
        weights = weights * (mask == 0)
    linear = (weights @ value) / (weights.sum(-1, keepdim=True) + EPSILON)
    return sparse, linear
