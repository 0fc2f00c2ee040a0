"""The sparse branch as Triton kernels: softmax over the listed key blocks, forward and backward in one pass each.

Query blocks are independent in the forward pass and for the gradient of the queries. For the gradients of keys and
values each key block walks the query blocks that listed it, so nothing is added from two programs at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor


@triton.jit
def _load(pointer, rows, columns, limit, DIM: tl.constexpr):
    """A tile of a (tokens, DIM) matrix; rows from ``limit`` on and columns from DIM on read as zero."""
    inside = (rows[:, None] < limit) & (columns[None, :] < DIM)
    return tl.load(pointer + rows[:, None] * DIM + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _forward(
    query, key, value, listed, out, logsumexp, tokens, padded_keys, keys, scale,
    COUNT: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)
    query += head * tokens * DIM
    key += head * padded_keys * DIM
    value += head * padded_keys * DIM
    rows = block * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, WIDTH)
    q = _load(query, rows, columns, tokens, DIM)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    summed = tl.zeros([BLOCK, WIDTH], tl.float32)
    listed += (head * tl.num_programs(0) + block) * COUNT
    for index in range(COUNT):
        places = tl.load(listed + index) * BLOCK + tl.arange(0, BLOCK)
        k = _load(key, places, columns, padded_keys, DIM)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(places[None, :] < keys, scores, float("-inf"))
        highest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - highest[:, None])
        shrink = tl.exp(largest - highest)
        total = total * shrink + tl.sum(weights, 1)
        v = _load(value, places, columns, padded_keys, DIM)
        summed = summed * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        largest = highest
    inside = (rows[:, None] < tokens) & (columns[None, :] < DIM)
    result = (summed / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + head * tokens * DIM + rows[:, None] * DIM + columns[None, :], result, mask=inside)
    tl.store(logsumexp + head * tokens + rows, largest + tl.log(total), mask=rows < tokens)


@triton.jit
def _backward_query(
    query, key, value, listed, grad, delta, logsumexp, d_query, tokens, padded_keys, keys, scale,
    COUNT: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)
    key += head * padded_keys * DIM
    value += head * padded_keys * DIM
    rows = block * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, WIDTH)
    q = _load(query + head * tokens * DIM, rows, columns, tokens, DIM)
    do = _load(grad + head * tokens * DIM, rows, columns, tokens, DIM)
    lse = tl.load(logsumexp + head * tokens + rows, mask=rows < tokens, other=0.0)
    dl = tl.load(delta + head * tokens + rows, mask=rows < tokens, other=0.0)
    summed = tl.zeros([BLOCK, WIDTH], tl.float32)
    listed += (head * tl.num_programs(0) + block) * COUNT
    for index in range(COUNT):
        places = tl.load(listed + index) * BLOCK + tl.arange(0, BLOCK)
        k = _load(key, places, columns, padded_keys, DIM)
        v = _load(value, places, columns, padded_keys, DIM)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        weights = tl.where(places[None, :] < keys, tl.exp(scores - lse[:, None]), 0.0)
        d_scores = weights * (tl.dot(do, tl.trans(v), input_precision="ieee") - dl[:, None])
        summed += tl.dot(d_scores.to(k.dtype), k, input_precision="ieee")
    inside = (rows[:, None] < tokens) & (columns[None, :] < DIM)
    result = (summed * scale).to(d_query.dtype.element_ty)
    tl.store(d_query + head * tokens * DIM + rows[:, None] * DIM + columns[None, :], result, mask=inside)


@triton.jit
def _backward_key_value(
    query, key, value, readers, starts, grad, delta, logsumexp, d_key, d_value, tokens, padded_keys, keys, scale,
    BLOCK: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)
    query += head * tokens * DIM
    grad += head * tokens * DIM
    places = block * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, WIDTH)
    k = _load(key + head * padded_keys * DIM, places, columns, padded_keys, DIM)
    v = _load(value + head * padded_keys * DIM, places, columns, padded_keys, DIM)
    summed_key = tl.zeros([BLOCK, WIDTH], tl.float32)
    summed_value = tl.zeros([BLOCK, WIDTH], tl.float32)
    starts += head * tl.num_programs(0) + block
    for index in range(tl.load(starts), tl.load(starts + 1)):
        rows = tl.load(readers + index) * BLOCK + tl.arange(0, BLOCK)
        q = _load(query, rows, columns, tokens, DIM)
        do = _load(grad, rows, columns, tokens, DIM)
        lse = tl.load(logsumexp + head * tokens + rows, mask=rows < tokens, other=0.0)
        dl = tl.load(delta + head * tokens + rows, mask=rows < tokens, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision="ieee") * scale
        inside = (places[:, None] < keys) & (rows[None, :] < tokens)
        weights = tl.where(inside, tl.exp(scores - lse[None, :]), 0.0)
        summed_value += tl.dot(weights.to(do.dtype), do, input_precision="ieee")
        d_scores = weights * (tl.dot(v, tl.trans(do), input_precision="ieee") - dl[None, :])
        summed_key += tl.dot(d_scores.to(q.dtype), q, input_precision="ieee")
    inside = (places[:, None] < padded_keys) & (columns[None, :] < DIM)
    offsets = head * padded_keys * DIM + places[:, None] * DIM + columns[None, :]
    tl.store(d_key + offsets, (summed_key * scale).to(d_key.dtype.element_ty), mask=inside)
    tl.store(d_value + offsets, summed_value.to(d_value.dtype.element_ty), mask=inside)


def _sizes(query: Tensor, block: int) -> dict[str, int]:
    if block < 16 or block & (block - 1):
        raise ValueError(f"block must be a power of two of at least 16 for the triton backend, got {block}")
    dim = query.shape[-1]
    return {"BLOCK": block, "DIM": dim, "WIDTH": max(16, triton.next_power_of_2(dim))}


def sparse_forward(
    query: Float[Tensor, "heads tokens dim"],
    key: Float[Tensor, "heads keys dim"],
    value: Float[Tensor, "heads keys dim"],
    critical: Int[Tensor, "heads blocks critical"],
    block: int,
    keys: int,
) -> tuple[Float[Tensor, "heads tokens dim"], Float[Tensor, "heads*tokens"]]:
    """Softmax attention of each query block over its critical key blocks, and the logarithm of its normaliser."""
    heads, tokens, dim = query.shape
    out = torch.empty_like(query)
    logsumexp = torch.empty(heads * tokens, dtype=torch.float32, device=query.device)
    _forward[(tokens // block, heads)](
        query, key, value, critical.contiguous(), out, logsumexp, tokens, key.shape[1], keys, dim**-0.5,
        COUNT=critical.shape[-1], **_sizes(query, block),
    )  # fmt: skip
    return out, logsumexp


def sparse_backward(
    grad: Float[Tensor, "heads tokens dim"],
    query: Float[Tensor, "heads tokens dim"],
    key: Float[Tensor, "heads keys dim"],
    value: Float[Tensor, "heads keys dim"],
    out: Float[Tensor, "heads tokens dim"],
    logsumexp: Float[Tensor, "heads*tokens"],
    critical: Int[Tensor, "heads blocks critical"],
    block: int,
    keys: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    heads, tokens, dim = query.shape
    blocks, key_blocks = tokens // block, key.shape[1] // block
    scale, sizes = dim**-0.5, _sizes(query, block)
    delta = (grad.float() * out.float()).sum(-1)
    d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    _backward_query[(blocks, heads)](
        query, key, value, critical.contiguous(), grad, delta, logsumexp, d_query, tokens, key.shape[1], keys, scale,
        COUNT=critical.shape[-1], **sizes,
    )  # fmt: skip
    # The lists turned round: for each key block, the query blocks that read it.
    read = critical + key_blocks * torch.arange(heads, device=query.device).view(-1, 1, 1)
    order = read.flatten().argsort(stable=True)
    readers = order // critical.shape[-1] % blocks
    counts = torch.bincount(read.flatten(), minlength=heads * key_blocks)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    _backward_key_value[(key_blocks, heads)](
        query, key, value, readers, starts, grad, delta, logsumexp, d_key, d_value, tokens, key.shape[1], keys, scale,
        **sizes,
    )  # fmt: skip
    return d_query, d_key, d_value
