"""Sparse-linear attention in plain torch, forward and backward, without ever holding an n x n matrix.

Heads are taken one after the other and query blocks a few at a time, so that gathered keys, scores and probabilities
stay in the processor's cache. All tensors here are (heads, tokens, dim), padded to whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from everyformer.ops.sparse_linear_attention.blocks import phi, phi_backward
from everyformer.ops.sparse_linear_attention.reference import EPSILON

# Scores held at a time: a megabyte or two with their probabilities, the size of a core's cache.
SCORES_AT_A_TIME = 1 << 19


def _chunks(blocks: int, critical: int, block: int) -> Iterator[slice]:
    """Runs of query blocks whose scores fit the cache, the first being the longest."""
    size = max(1, SCORES_AT_A_TIME // (critical * block * block))
    for start in range(0, blocks, size):
        yield slice(start, min(start + size, blocks))


def _prepare(query: Tensor, critical: Tensor, block: int) -> tuple[list[slice], _Workspace]:
    chunks = list(_chunks(query.shape[1] // block, critical.shape[-1], block))
    return chunks, _Workspace(query, chunks[0].stop, critical.shape[-1], block)


class _Workspace:
    """Buffers for one chunk, used again for the next: fresh memory would cost more than the arithmetic on it."""

    def __init__(self, like: Tensor, chunk: int, count: int, block: int) -> None:
        dim = like.shape[-1]
        self.scores, self.probabilities = like.new_empty(2, chunk, block, count * block).unbind()
        self.keys, self.values = like.new_empty(2, chunk * count, block * dim).unbind()
        self.shape = (-1, count * block, dim)

    def gather(self, buffer: Tensor, source: Tensor, index: Tensor) -> Tensor:
        """Key or value blocks as (query blocks, critical * block, dim)."""
        return torch.index_select(source, 0, index, out=buffer[: len(index)]).view(self.shape)

    def softmax(self, query: Tensor, key: Tensor, index: Tensor, valid: Tensor | None) -> Tensor:
        """Probabilities (query blocks, block, critical * block)."""
        scores = self.scores[: len(query)]
        torch.baddbmm(scores, query, key.transpose(1, 2), beta=0, alpha=query.shape[-1] ** -0.5, out=scores)
        if valid is not None:
            scores += valid[index].view(len(query), 1, -1)
        return torch.softmax(scores, -1, out=self.probabilities[: len(query)])


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
    out: Float[Tensor, "heads tokens dim"],
    block: int,
    keys: int,
) -> None:
    """Into ``out``, softmax attention of each query block over its critical key blocks.

    Of the keys, ``keys`` are not padding. The backward pass computes the probabilities anew: a chunk has whole rows.
    """
    heads, _, dim = query.shape
    chunks, space = _prepare(query, critical, block)
    valid = _padding(keys, key.shape[1], block, query)
    for head in range(heads):
        q, o = query[head].view(-1, block, dim), out[head].view(-1, block, dim)
        k, v = key[head].view(-1, block * dim), value[head].view(-1, block * dim)
        for part in chunks:
            index = critical[head, part].reshape(-1)
            probabilities = space.softmax(q[part], space.gather(space.keys, k, index), index, valid)
            torch.bmm(probabilities, space.gather(space.values, v, index), out=o[part])


def sparse_backward(
    grad: Float[Tensor, "heads tokens dim"],
    query: Float[Tensor, "heads tokens dim"],
    key: Float[Tensor, "heads keys dim"],
    value: Float[Tensor, "heads keys dim"],
    out: Float[Tensor, "heads tokens dim"],
    critical: Int[Tensor, "heads blocks critical"],
    block: int,
    keys: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value (arXiv 2509.24006, algorithm 2), summed in float32 at least."""
    heads, _, dim = query.shape
    chunks, space = _prepare(query, critical, block)
    wide = torch.promote_types(query.dtype, torch.float32)
    delta = (grad * out).sum(-1, keepdim=True, dtype=wide).to(grad.dtype)
    d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    valid = _padding(keys, key.shape[1], block, query)
    for head in range(heads):
        q, dq, do, dl = (t[head].view(-1, block, t.shape[-1]) for t in (query, d_query, grad, delta))
        k, v = key[head].view(-1, block * dim), value[head].view(-1, block * dim)
        dk = torch.zeros(k.shape, dtype=wide, device=k.device)
        dv = torch.zeros_like(dk)
        for part in chunks:
            index = critical[head, part].reshape(-1)
            keys_here, values_here = space.gather(space.keys, k, index), space.gather(space.values, v, index)
            probabilities = space.softmax(q[part], keys_here, index, valid)
            # The scores are used up, and so are the gathered values after the next line: both buffers serve again.
            d_scores = torch.bmm(do[part], values_here.transpose(1, 2), out=space.scores[: len(do[part])])
            d_values_here = torch.bmm(probabilities.transpose(1, 2), do[part], out=values_here)
            dv.index_add_(0, index, d_values_here.view(len(index), -1).to(wide))
            d_scores.sub_(dl[part]).mul_(probabilities)
            torch.bmm(d_scores, keys_here, out=dq[part])
            d_keys_here = torch.bmm(d_scores.transpose(1, 2), q[part], out=keys_here)
            dk.index_add_(0, index, d_keys_here.view(len(index), -1).to(wide))
        dq.mul_(dim**-0.5)
        d_key[head] = dk.mul_(dim**-0.5).view(-1, dim)
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


def _dots(
    rows: Float[Tensor, "blocks tokens dim"], vector: Float[Tensor, "blocks dim"]
) -> Float[Tensor, "blocks tokens 1"]:
    """Each row times its block's vector; the vector comes first, since a product of one column is six times slower."""
    return torch.bmm(vector.unsqueeze(1), rows.transpose(1, 2)).transpose(1, 2)


def _features(x: Tensor, tokens: int, feature_map: str) -> Tensor:
    """``phi`` of one head, zero for padded tokens so that no sum sees them."""
    features = phi(x, feature_map)
    features[tokens:] = 0
    return features


def linear_forward(
    query: Float[Tensor, "heads tokens dim"],
    key: Float[Tensor, "heads keys dim"],
    value: Float[Tensor, "heads keys dim"],
    critical: Int[Tensor, "heads blocks critical"],
    negligible: Int[Tensor, "heads blocks negligible"],
    out: Float[Tensor, "heads tokens dim"],
    block: int,
    keys: int,
    everywhere: bool,
    feature_map: str,
) -> None:
    """Into ``out``, linear attention over marginal blocks, or ``everywhere``.

    Sums over the marginal blocks are one product of the block map with the per-block sums: 1/block of the work that
    attention over them would be.
    """
    dim = query.shape[-1]
    for head in range(len(query)):
        h, z = _sums(_features(key[head], keys, feature_map), value[head], block)
        q = phi(query[head], feature_map)
        if everywhere:
            q, o = q.unsqueeze(0), out[head].unsqueeze(0)
            h, z = h.sum(0, keepdim=True), z.sum(0, keepdim=True)
        else:
            q, o = q.view(-1, block, dim), out[head].view(-1, block, dim)
            mask = _marginal(critical, negligible, head, len(h), h.dtype)
            h, z = mask @ h, mask @ z
        torch.bmm(q, h.view(-1, dim, dim), out=o)
        o.div_(_dots(q, z).add_(EPSILON))


def linear_backward(
    grad: Float[Tensor, "heads tokens dim"],
    query: Float[Tensor, "heads tokens dim"],
    key: Float[Tensor, "heads keys dim"],
    value: Float[Tensor, "heads keys dim"],
    out: Float[Tensor, "heads tokens dim"],
    critical: Int[Tensor, "heads blocks critical"],
    negligible: Int[Tensor, "heads blocks negligible"],
    block: int,
    keys: int,
    everywhere: bool,
    feature_map: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; features and per-block sums are computed anew."""
    dim = query.shape[-1]
    d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    for head in range(len(query)):
        key_features = _features(key[head], keys, feature_map)
        query_features = phi(query[head], feature_map)
        h, z = _sums(key_features, value[head], block)
        width = query.shape[1] if everywhere else block
        q, do, o = (t.view(-1, width, dim) for t in (query_features, grad[head], out[head]))
        if everywhere:
            mask = None
            h, z = h.sum(0, keepdim=True), z.sum(0, keepdim=True)
        else:
            mask = _marginal(critical, negligible, head, len(h), h.dtype)
            h, z = mask @ h, mask @ z
        normaliser = _dots(q, z).add_(EPSILON)
        d_top = do / normaliser
        d_bottom = -(d_top * o).sum(-1, keepdim=True)
        d_features = torch.baddbmm(d_bottom * z.unsqueeze(1), d_top, h.view(-1, dim, dim).transpose(1, 2))
        d_query[head] = phi_backward(d_features.view(-1, dim), query_features, feature_map)
        d_h = torch.bmm(q.transpose(1, 2), d_top).flatten(1)
        d_z = torch.bmm(q.transpose(1, 2), d_bottom).squeeze(-1)
        if mask is not None:
            d_h, d_z = mask.t() @ d_h, mask.t() @ d_z
        width = key.shape[1] if everywhere else block
        k, v = key_features.view(-1, width, dim), value[head].view(-1, width, dim)
        d_h = d_h.view(-1, dim, dim)
        d_features = torch.baddbmm(d_z.unsqueeze(1).expand_as(k), v, d_h.transpose(1, 2))
        d_key[head] = phi_backward(d_features.view(-1, dim), key_features, feature_map)
        torch.bmm(k, d_h, out=d_value[head].view(-1, width, dim))
    return d_query, d_key, d_value
