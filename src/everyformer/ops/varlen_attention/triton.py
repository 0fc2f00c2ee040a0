"""Attention among packed sequences as Triton kernels: one program per block of a sequence's queries (or keys) and head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

BLOCK = 64


@triton.jit
def _tile(pointer, rows, columns, stop, heads, DIM: tl.constexpr):
    """Rows of one head of a (total, heads, DIM) tensor; outside the sequence and the head it reads as zero."""
    inside = (rows[:, None] < stop) & (columns[None, :] < DIM)
    return tl.load(pointer + rows[:, None] * heads * DIM + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _forward(
    query, key, value, starts, stops, firsts, out, logsumexp, heads, scale,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(starts + block), tl.load(stops + block)
    rows = tl.load(firsts + block) + tl.arange(0, BLOCK)
    columns = tl.arange(0, WIDTH)
    q = _tile(query + head * DIM, rows, columns, stop, heads, DIM)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    summed = tl.zeros([BLOCK, WIDTH], tl.float32)
    for first in range(start, stop, BLOCK):
        places = first + tl.arange(0, BLOCK)
        k = _tile(key + head * DIM, places, columns, stop, heads, DIM)
        v = _tile(value + head * DIM, places, columns, stop, heads, DIM)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(places[None, :] < stop, scores, float("-inf"))
        highest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - highest[:, None])
        shrink = tl.exp(largest - highest)
        total = total * shrink + tl.sum(weights, 1)
        summed = summed * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        largest = highest
    inside = (rows[:, None] < stop) & (columns[None, :] < DIM)
    place = out + head * DIM + rows[:, None] * heads * DIM + columns[None, :]
    tl.store(place, (summed / total[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(logsumexp + rows * heads + head, largest + tl.log(total), mask=rows < stop)


@triton.jit
def _backward(
    query, key, value, grad, delta, logsumexp, starts, stops, firsts, d_query, d_key, d_value, heads, scale,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of rows: as queries over all keys of the sequence, then as keys over all its queries."""
    block, head = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(starts + block), tl.load(stops + block)
    rows = tl.load(firsts + block) + tl.arange(0, BLOCK)
    columns = tl.arange(0, WIDTH)
    q = _tile(query + head * DIM, rows, columns, stop, heads, DIM)
    k = _tile(key + head * DIM, rows, columns, stop, heads, DIM)
    v = _tile(value + head * DIM, rows, columns, stop, heads, DIM)
    do = _tile(grad + head * DIM, rows, columns, stop, heads, DIM)
    own = rows < stop
    lse = tl.load(logsumexp + rows * heads + head, mask=own, other=0.0)
    dl = tl.load(delta + rows * heads + head, mask=own, other=0.0)
    dq = tl.zeros([BLOCK, WIDTH], tl.float32)
    dk = tl.zeros([BLOCK, WIDTH], tl.float32)
    dv = tl.zeros([BLOCK, WIDTH], tl.float32)
    for first in range(start, stop, BLOCK):
        places = first + tl.arange(0, BLOCK)
        there = places < stop
        both = own[:, None] & there[None, :]
        other_k = _tile(key + head * DIM, places, columns, stop, heads, DIM)
        other_v = _tile(value + head * DIM, places, columns, stop, heads, DIM)
        weights = tl.exp(tl.dot(q, tl.trans(other_k), input_precision="ieee") * scale - lse[:, None])
        weights = tl.where(both, weights, 0.0)
        d_scores = weights * (tl.dot(do, tl.trans(other_v), input_precision="ieee") - dl[:, None])
        dq += tl.dot(d_scores.to(other_k.dtype), other_k, input_precision="ieee")

        other_q = _tile(query + head * DIM, places, columns, stop, heads, DIM)
        other_do = _tile(grad + head * DIM, places, columns, stop, heads, DIM)
        other_lse = tl.load(logsumexp + places * heads + head, mask=there, other=0.0)
        other_dl = tl.load(delta + places * heads + head, mask=there, other=0.0)
        weights = tl.exp(tl.dot(k, tl.trans(other_q), input_precision="ieee") * scale - other_lse[None, :])
        weights = tl.where(both, weights, 0.0)
        dv += tl.dot(weights.to(other_do.dtype), other_do, input_precision="ieee")
        d_scores = weights * (tl.dot(v, tl.trans(other_do), input_precision="ieee") - other_dl[None, :])
        dk += tl.dot(d_scores.to(other_q.dtype), other_q, input_precision="ieee")
    inside = own[:, None] & (columns[None, :] < DIM)
    place = head * DIM + rows[:, None] * heads * DIM + columns[None, :]
    tl.store(d_query + place, (dq * scale).to(d_query.dtype.element_ty), mask=inside)
    tl.store(d_key + place, (dk * scale).to(d_key.dtype.element_ty), mask=inside)
    tl.store(d_value + place, dv.to(d_value.dtype.element_ty), mask=inside)


def _blocks(lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each block of rows: where its sequence starts and stops, and its first row."""
    table, start = [], 0
    for length in lengths:
        table += [(start, start + length, first) for first in range(start, start + length, BLOCK)]
        start += length
    starts, stops, firsts = torch.tensor(table, dtype=torch.int32, device=device).unbind(1)
    return starts.contiguous(), stops.contiguous(), firsts.contiguous()


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, lengths, scale):  # type: ignore[no-untyped-def]
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        _, heads, dim = query.shape
        blocks = _blocks(lengths, query.device)
        out = torch.empty_like(query)
        logsumexp = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
        sizes = {"DIM": dim, "WIDTH": max(16, triton.next_power_of_2(dim)), "BLOCK": BLOCK}
        _forward[(len(blocks[0]), heads)](query, key, value, *blocks, out, logsumexp, heads, scale, **sizes)
        ctx.save_for_backward(query, key, value, out, logsumexp, *blocks)
        ctx.scale, ctx.sizes = scale, sizes
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, value, out, logsumexp, *blocks = ctx.saved_tensors
        grad = grad.contiguous()
        delta = (grad.float() * out.float()).sum(-1)
        grads = [torch.empty_like(x) for x in (query, key, value)]
        heads = query.shape[1]
        _backward[(len(blocks[0]), heads)](
            query, key, value, grad, delta, logsumexp, *blocks, *grads, heads, ctx.scale, **ctx.sizes
        )
        return *grads, None, None


def varlen_attention(
    query: Float[Tensor, "total heads head_dim"],
    key: Float[Tensor, "total heads head_dim"],
    value: Float[Tensor, "total heads head_dim"],
    lengths: list[int],
    scale: float,
) -> Float[Tensor, "total heads head_dim"]:
    """Softmax attention within each of the sequences of ``lengths``."""
    return _Attend.apply(query, key, value, lengths, scale)  # type: ignore[no-any-return]
