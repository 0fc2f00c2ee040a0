"""Sparse-linear attention in plain torch, forward and backward, without ever holding an n x n matrix.

Heads are taken one after the other and query blocks a few at a time, so that gathered keys, scores and probabilities
stay in the processor's cache. All tensors here are (heads, tokens, dim), padded to whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from everyformer.ops.sparse_linear_attention.reference import EPSILON

# Scores held at a time: a megabyte or two with their probabilities, the size of a core's cache.
SCORES_AT_A_TIME = 1 << 19


def _chunks(blocks: int, critical: int, block: int) -> Iterator[slice]:
    """Runs of query blocks whose scores fit the cache."""
    size = max(1, SCORES_AT_A_TIME // (critical * block * block))
    for start in range(0, blocks, size):
        yield slice(start, min(start + size, blocks))


def _scores(
    query: Tensor, key: Tensor, index: Tensor, valid: Float[Tensor, "keyblocks block"] | None, scale: float
) -> Tensor:
    """Scaled scores (blocks, block, critical * block) of query blocks and their gathered keys."""
    scores = torch.baddbmm(query.new_empty(1, 1, 1), query, key.transpose(1, 2), beta=0, alpha=scale)
    if valid is not None:
        scores += valid[index].view(len(query), 1, -1)
    return scores


def _padding(keys: int, padded: int, block: int, like: Tensor) -> Tensor | None:
    """What to add to the scores of padded keys, by block; nothing when every block is full."""
    if keys == padded:
        return None
    bias = torch.zeros(padded, dtype=like.dtype, device=like.device)
    bias[keys:] = -torch.inf
    return bias.view(-1, block)


def sparse_forward(
    query: Float[Tensor, "heads tokens dim"],
    key: Float[Tensor, "heads keys dim"],
    value: Float[Tensor, "heads keys dim"],
    critical: Int[Tensor, "heads blocks critical"],
    block: int,
    keys: int,
) -> tuple[Float[Tensor, "heads tokens dim"], Float[Tensor, "heads tokens"]]:
    """Softmax attention of each query block over its critical key blocks; ``keys`` of the keys are not padding.

    The second result is left empty: the probabilities of a block are all at hand in the backward pass.
    """
    heads, tokens, dim = query.shape
    count = critical.shape[-1]
    out = torch.empty_like(query)
    valid = _padding(keys, key.shape[1], block, query)
    for head in range(heads):
        q, o = query[head].view(-1, block, dim), out[head].view(-1, block, dim)
        k, v = key[head].view(-1, block * dim), value[head].view(-1, block * dim)
        for part in _chunks(tokens // block, count, block):
            index = critical[head, part].reshape(-1)
            gathered = k.index_select(0, index).view(-1, count * block, dim)
            probabilities = _scores(q[part], gathered, index, valid, dim**-0.5).softmax(-1)
            torch.bmm(probabilities, v.index_select(0, index).view(-1, count * block, dim), out=o[part])
    return out, query.new_empty(0)


def sparse_backward(
    grad: Float[Tensor, "heads tokens dim"],
    query: Float[Tensor, "heads tokens dim"],
    key: Float[Tensor, "heads keys dim"],
    value: Float[Tensor, "heads keys dim"],
    out: Float[Tensor, "heads tokens dim"],
    logsumexp: Tensor,
    critical: Int[Tensor, "heads blocks critical"],
    block: int,
    keys: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value (arXiv 2509.24006, algorithm 2), summed in float32 at least."""
    heads, tokens, dim = query.shape
    count, scale = critical.shape[-1], dim**-0.5
    wide = torch.promote_types(query.dtype, torch.float32)
    delta = (grad * out).sum(-1, keepdim=True, dtype=wide).to(grad.dtype)
    d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    valid = _padding(keys, key.shape[1], block, query)
    for head in range(heads):
        q, dq, do, dl = (t[head].view(-1, block, t.shape[-1]) for t in (query, d_query, grad, delta))
        k, v = key[head].view(-1, block * dim), value[head].view(-1, block * dim)
        dk = torch.zeros(k.shape, dtype=wide, device=k.device)
        dv = torch.zeros_like(dk)
        for part in _chunks(tokens // block, count, block):
            index = critical[head, part].reshape(-1)
            keys_here = k.index_select(0, index).view(-1, count * block, dim)
            values_here = v.index_select(0, index).view(-1, count * block, dim)
            probabilities = _scores(q[part], keys_here, index, valid, scale).softmax(-1)
            d_values_here = torch.bmm(probabilities.transpose(1, 2), do[part])
            dv.index_add_(0, index, d_values_here.view(len(index), -1).to(wide))
            d_scores = torch.bmm(do[part], values_here.transpose(1, 2)).sub_(dl[part]).mul_(probabilities)
            torch.bmm(d_scores, keys_here, out=dq[part])
            d_keys_here = torch.bmm(d_scores.transpose(1, 2), q[part])
            dk.index_add_(0, index, d_keys_here.view(len(index), -1).to(wide))
        dq.mul_(scale)
        d_key[head] = dk.mul_(scale).view(-1, dim)
        d_value[head] = dv.view(-1, dim)
    return d_query, d_key, d_value


def _marginal(critical: Tensor, negligible: Tensor, head: int, blocks: int, dtype: torch.dtype) -> Tensor:
    """One where a key block is marginal to a query block, else zero, for one head."""
    mask = torch.ones(critical.shape[1], blocks, dtype=dtype, device=critical.device)
    return mask.scatter_(1, critical[head], 0).scatter_(1, negligible[head], 0)


def _sums(
    features: Tensor, value: Tensor, block: int
) -> tuple[Float[Tensor, "blocks dim*dim"], Float[Tensor, "blocks dim"]]:
    """h_j and z_j of each key block of one head: features' products with the values, and their sums."""
    f = features.view(-1, block, features.shape[-1])
    return torch.bmm(f.transpose(1, 2), value.view_as(f)).flatten(1), f.sum(1)


def linear_forward(
    query: Float[Tensor, "heads tokens dim"],
    key: Float[Tensor, "heads keys dim"],
    value: Float[Tensor, "heads keys dim"],
    critical: Int[Tensor, "heads blocks critical"],
    negligible: Int[Tensor, "heads blocks negligible"],
    block: int,
    everywhere: bool,
) -> Float[Tensor, "heads tokens dim"]:
    """Linear attention with the features ``query`` and ``key`` over marginal blocks, or ``everywhere``.

    Padded keys must have features of zero. Sums over the marginal blocks are one product of the block mask with the
    per-block sums: 1/block of the work that attention over them would be.
    """
    heads, _, dim = query.shape
    out = torch.empty_like(query)
    for head in range(heads):
        h, z = _sums(key[head], value[head], block)
        if everywhere:
            q, o = query[head].unsqueeze(0), out[head].unsqueeze(0)
            h, z = h.sum(0, keepdim=True), z.sum(0, keepdim=True)
        else:
            q, o = query[head].view(-1, block, dim), out[head].view(-1, block, dim)
            mask = _marginal(critical, negligible, head, len(h), h.dtype)
            h, z = mask @ h, mask @ z
        torch.bmm(q, h.view(-1, dim, dim), out=o)
        o.div_(torch.bmm(q, z.unsqueeze(-1)).add_(EPSILON))
    return out


def linear_backward(
    grad: Float[Tensor, "heads tokens dim"],
    query: Float[Tensor, "heads tokens dim"],
    key: Float[Tensor, "heads keys dim"],
    value: Float[Tensor, "heads keys dim"],
    out: Float[Tensor, "heads tokens dim"],
    critical: Int[Tensor, "heads blocks critical"],
    negligible: Int[Tensor, "heads blocks negligible"],
    block: int,
    everywhere: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the features of query and key, and of value; the per-block sums are computed anew."""
    heads, _, dim = query.shape
    d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    for head in range(heads):
        h, z = _sums(key[head], value[head], block)
        width = query.shape[1] if everywhere else block
        q, dq, do, o = (t[head].view(-1, width, dim) for t in (query, d_query, grad, out))
        if everywhere:
            mask = None
            h, z = h.sum(0, keepdim=True), z.sum(0, keepdim=True)
        else:
            mask = _marginal(critical, negligible, head, len(h), h.dtype)
            h, z = mask @ h, mask @ z
        normaliser = torch.bmm(q, z.unsqueeze(-1)).add_(EPSILON)
        d_top = do / normaliser
        d_bottom = -(d_top * o).sum(-1, keepdim=True)
        torch.baddbmm(d_bottom * z.unsqueeze(1), d_top, h.view(-1, dim, dim).transpose(1, 2), out=dq)
        d_h = torch.bmm(q.transpose(1, 2), d_top).flatten(1)
        d_z = torch.bmm(q.transpose(1, 2), d_bottom).squeeze(-1)
        if mask is not None:
            d_h, d_z = mask.t() @ d_h, mask.t() @ d_z
        width = key.shape[1] if everywhere else block
        k, v, dk, dv = (t[head].view(-1, width, dim) for t in (key, value, d_key, d_value))
        d_h = d_h.view(-1, dim, dim)
        torch.baddbmm(d_z.unsqueeze(1).expand_as(k), v, d_h.transpose(1, 2), out=dk)
        torch.bmm(k, d_h, out=dv)
    return d_query, d_key, d_value
