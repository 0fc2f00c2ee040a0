"""Token attentions that the inverted family swaps (arXiv 2310.06625, section 4.2): full, flow, prob and LSH.

Each is a function in the style of ``F.scaled_dot_product_attention``: queries, keys and values of shape
``(batch, heads, tokens, head_dim)`` plus a keyword ``dropout_p``. All are linear in the values, so the weights that any
of them applies come out when an identity is passed along with the values (see :func:`with_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

TokenAttention = Callable[..., Tensor]


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
    "full": F.scaled_dot_product_attention,
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
