"""Token attentions that the inverted family swaps (arXiv 2310.06625, section 4.2): full, flow, prob and LSH.

Each is a function in the style of ``F.scaled_dot_product_attention``: queries, keys and values of shape
``(batch, heads, tokens, head_dim)`` plus a keyword ``dropout_p``. All are linear in the values, so the weights that any
of them applies come out when an identity is passed along with the values (see :func:`with_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

TokenAttention = Callable[..., Tensor]


def keep_mask(like: Tensor, p: float) -> Tensor:
    """Random ones (kept) and zeros (dropped, with probability ``p``) of the shape and type of ``like``, on the CPU.

    Four draws to a random 64-bit word, so ``p`` is met to within 2^-17; torch's own mask costs about seven times more.
    """
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    lanes = words.view(torch.int16)[: like.numel()].view(like.shape)
    return (lanes >= round(p * 2**16) - 2**15).to(like.dtype)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``F.dropout``, with a cheaper mask where an eager step on the CPU would spend a fifth of its time on it."""
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    return x * keep_mask(x, p).mul_(1 / (1 - p))


class _DroppedAttention(torch.autograd.Function):
    """Full attention with dropout on its weights, for training on the CPU, where torch has no fused kernel for it.

    It goes through the batch in pieces that stay in the cache. With weights P, kept ones A and output O = A V / (1 - p):
    dS = A * dA - P * rowsum(dO * O), so the backward pass needs no mask.
    """

    PIECE = 2**19  # weights handled at a time

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, p: float) -> Tensor:
        batch, heads, tokens, dim = query.shape
        ctx.p, ctx.scale = p, dim**-0.5
        ctx.size = max(1, _DroppedAttention.PIECE // (heads * tokens * key.shape[-2]))
        query, key, value = query.contiguous() * ctx.scale, key.contiguous(), value.contiguous()
        out = query.new_empty(batch, heads, tokens, value.shape[-1])
        saved = []
        for i in range(0, batch, ctx.size):
            piece = slice(i, i + ctx.size)
            weights = (query[piece] @ key[piece].transpose(-2, -1)).softmax(dim=-1)
            kept = keep_mask(weights, p).mul_(weights)
            torch.matmul(kept, value[piece], out=out[piece])
            saved += [weights, kept]
        out.mul_(1 / (1 - p))
        ctx.save_for_backward(query, key, value, out, *saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *saved = ctx.saved_tensors
        grad = grad.contiguous()
        total = (grad * out).sum(dim=-1, keepdim=True)
        grad = grad * (1 / (1 - ctx.p))
        d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for j, i in enumerate(range(0, query.shape[0], ctx.size)):
            piece, weights, kept = slice(i, i + ctx.size), saved[2 * j], saved[2 * j + 1]
            torch.matmul(kept.transpose(-2, -1), grad[piece], out=d_value[piece])
            d_scores = (grad[piece] @ value[piece].transpose(-2, -1)).mul_(kept)
            d_scores.addcmul_(weights, total[piece], value=-1)
            torch.matmul(d_scores, key[piece], out=d_query[piece])
            torch.matmul(d_scores.transpose(-2, -1), query[piece], out=d_key[piece])
        return d_query.mul_(ctx.scale), d_key, d_value, None


def full_attention(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys value_dim"],
    dropout_p: float = 0.0,
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """Softmax attention: ``F.scaled_dot_product_attention``, or a faster equal of it for dropout on the CPU in fp32."""
    plain = query.device.type != "cpu" or query.dtype != torch.float32 or torch.compiler.is_compiling()
    if plain or dropout_p == 0 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)
    return _DroppedAttention.apply(query, key, value, dropout_p)


def flow_attention(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys value_dim"],
    dropout_p: float = 0.0,
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """Attention as a conserved flow from values to results, linear in the tokens (Flowformer, arXiv 2202.06258).

    Keys compete for a fixed outgoing flow (softmax), queries admit what comes in (sigmoid). There are no weights to
    drop, so ``dropout_p`` is accepted and has no effect, as in the authors' code.
    """
    tiny = 1e-6  # the authors' guard: on both factors of every inner product
    query, key = query.sigmoid(), key.sigmoid()

    def flow(tokens: Tensor, other: Tensor) -> Tensor:
        return (tokens + tiny) @ (other.sum(dim=-2).unsqueeze(-1) + tiny)

    incoming, outgoing = flow(query, key), flow(key, query)
    admitted = flow(query, key / outgoing)  # incoming flow when every key sends out one unit
    offered = flow(key, query / incoming)  # outgoing flow when every query takes in one unit
    allocation = torch.sigmoid(admitted * (query.shape[-2] / key.shape[-2]))
    competition = offered.softmax(dim=-2) * key.shape[-2]
    return (query / incoming) @ (key.transpose(-2, -1) @ (value * competition)) * allocation


def prob_attention(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys value_dim"],
    dropout_p: float = 0.0,
    factor: int = 1,
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """Attention of the few queries that look peaked on sampled keys; the others get the mean value (arXiv 2012.07436).

    ``factor * ceil(ln n)`` keys are drawn per query to score it, and as many queries attend; with that number at
    ``n`` or more this is full attention. ``dropout_p`` has no effect, as in the authors' code.

    Raises:
        ValueError: ``factor`` below 1.
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    batch, heads, tokens, _ = query.shape
    keys = key.shape[-2]
    sampled = min(keys, factor * max(1, math.ceil(math.log(keys))))
    active = min(tokens, factor * max(1, math.ceil(math.log(tokens))))

    drawn = torch.randint(keys, (tokens, sampled), device=query.device)
    scores = (query.unsqueeze(-2) * key[:, :, drawn]).sum(dim=-1)
    peakedness = scores.amax(dim=-1) - scores.sum(dim=-1) / keys
    top = peakedness.topk(active, dim=-1).indices.unsqueeze(-1)

    chosen = query.gather(-2, top.expand(-1, -1, -1, query.shape[-1]))
    attended = F.scaled_dot_product_attention(chosen, key, value)
    mean = value.mean(dim=-2, keepdim=True).expand(batch, heads, tokens, value.shape[-1])
    return mean.scatter(-2, top.expand(-1, -1, -1, value.shape[-1]), attended)


ATTENTIONS: dict[str, TokenAttention] = {
    "full": full_attention,
    "flow": flow_attention,
    "prob": prob_attention,
}


def resolve(attention: str | TokenAttention) -> TokenAttention:
    """A token attention by name, or the callable itself.

    Raises:
        ValueError: a name that is not one of ``ATTENTIONS``.
        TypeError: neither a name nor callable.
    """
    if isinstance(attention, str):
        if attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {sorted(ATTENTIONS)} or a callable, got {attention!r}")
        return ATTENTIONS[attention]
    if not callable(attention):
        raise TypeError(f"attention must be a name or a callable, got {type(attention).__name__}")
    return attention


def with_weights(
    attention: TokenAttention,
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys value_dim"],
    dropout_p: float = 0.0,
) -> tuple[Float[Tensor, "batch heads tokens value_dim"], Float[Tensor, "batch heads tokens keys"]]:
    """An attention's output and the weights it applied, random draws and dropout included.

    An attention is a matrix applied to the values; applied to the identity it gives that matrix.
    """
    keys = key.shape[-2]
    identity = torch.eye(keys, dtype=value.dtype, device=value.device).expand(*value.shape[:-2], keys, keys)
    out = attention(query, key, torch.cat([value, identity], dim=-1), dropout_p=dropout_p)
    return out[..., : value.shape[-1]], out[..., value.shape[-1] :]
