"""How the alternatives are related: statements that can be run, each with the largest difference it leaves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.parts.mixers.hyena import long_convolution
from everyformer.parts.mixers.rwkv import gated_attention
from everyformer.parts.mixers.ssd import decayed_attention

HEADS, WIDTH = 2, 8  # of what the statements are checked with


@dataclasses.dataclass(frozen=True)
class Connection:
    """Two names of one thing.

    Attributes:
        of, to: entries of the map, or ideas beside it.
        statement: what has to hold for them to be the same.
        arxiv: where it is from.
        gap: the largest difference between the two in float64, for so many tokens and a seed.
    """

    of: str
    to: str
    statement: str
    arxiv: str
    gap: Callable[[int, int], float]


def recurrence(
    query: Float[Tensor, "heads tokens state"],
    key: Float[Tensor, "heads tokens state"],
    value: Float[Tensor, "heads tokens width"],
    gate: Float[Tensor, "heads tokens #state"],
) -> Float[Tensor, "heads tokens width"]:
    """A network with a matrix for a state, token by token: ``S <- gate S + k v'``, read by ``q S``."""
    state, read = key.new_zeros(key.shape[0], key.shape[-1], value.shape[-1]), []
    for token in range(key.shape[1]):
        state = gate[:, token, :, None] * state + key[:, token, :, None] * value[:, token, None]
        read.append((query[:, token, None] @ state)[:, 0])
    return torch.stack(read, dim=1)


def gate_matrix(log_gate: Float[Tensor, "heads tokens"]) -> Float[Tensor, "heads tokens tokens"]:
    """``L[t, s]``, the product of the gates after s up to t: one number on and below each corner has rank one."""
    total = log_gate.cumsum(-1)
    later = torch.ones(log_gate.shape[-1], log_gate.shape[-1], dtype=torch.bool).triu(1)
    return (total[:, :, None] - total[:, None]).masked_fill(later, -math.inf).exp()


def drawn(tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and the logarithms of gates between 1/e and 1."""
    generator = torch.Generator().manual_seed(seed)
    shape = (HEADS, tokens, WIDTH)
    parts = (torch.randn(shape, dtype=torch.float64, generator=generator) / WIDTH**0.5 for _ in range(3))
    return *parts, -torch.rand(HEADS, tokens, dtype=torch.float64, generator=generator)  # type: ignore[return-value]


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max())


def _chunked(query: Tensor, key: Tensor, value: Tensor, log_gate: Tensor) -> Tensor:
    return decayed_attention(query[None], key[None], value[None], log_gate[None])[0][0]


def _linear_is_recurrent(tokens: int, seed: int) -> float:
    query, key, value, _ = drawn(tokens, seed)
    attention = (query @ key.transpose(-1, -2)).tril() @ value
    return _difference(attention, recurrence(query, key, value, torch.ones_like(key[..., :1])))


def _ssd_is_masked_attention(tokens: int, seed: int) -> float:
    query, key, value, log_gate = drawn(tokens, seed)
    attention = (query @ key.transpose(-1, -2) * gate_matrix(log_gate)) @ value
    stepwise = recurrence(query, key, value, log_gate.exp()[..., None])
    return max(_difference(attention, stepwise), _difference(_chunked(query, key, value, log_gate), stepwise))


def _retention_is_ssd(tokens: int, seed: int) -> float:
    query, key, value, log_gate = drawn(tokens, seed)
    place = torch.arange(tokens, dtype=torch.float64)
    rate = log_gate[:, :1].exp()
    parallel = (query @ key.transpose(-1, -2) * (rate[..., None] ** (place[:, None] - place)).tril()) @ value
    return _difference(parallel, _chunked(query, key, value, log_gate[:, :1].expand(-1, tokens)))


def _rwkv_is_retention(tokens: int, seed: int) -> float:
    query, key, value, log_gate = drawn(tokens, seed)
    constant = log_gate[:, :1].expand(-1, tokens)
    rate = constant[..., None].exp()
    # RWKV reads the state before its gate has acted, and the token itself by a bonus of its own.
    vectors = constant[None, ..., None].expand(1, -1, -1, WIDTH)
    finch = gated_attention(
        (rate * query)[None], key[None], value[None], vectors, (1 / rate[:, :1]).expand(-1, 1, WIDTH)
    )
    return _difference(finch[0][0], _chunked(query, key, value, constant))


def _state_space_is_convolution(tokens: int, seed: int) -> float:
    query, key, value, log_gate = drawn(tokens, seed)
    out, into, gates = query[0, 0], key[0, 0], log_gate[0, :1].exp() * torch.linspace(0.5, 1, WIDTH).double()
    powers = gates ** torch.arange(tokens, dtype=torch.float64)[:, None]
    response = (powers * out * into).sum(-1, keepdim=True)
    signal = value[:1, :, :1]
    shape = (1, tokens, WIDTH)
    stepwise = recurrence(out.expand(shape), into.expand(shape), signal, gates.expand(shape))
    return _difference(long_convolution(signal, response), stepwise)


def _writing_is_learning(tokens: int, seed: int) -> float:
    query, key, value, _ = drawn(tokens, seed)
    weights = key.new_zeros(HEADS, WIDTH, WIDTH, requires_grad=True)
    agreement = ((key @ weights) * value).sum()
    (gradient,) = torch.autograd.grad(agreement, weights)
    attention = (query[:, -1:] @ key.transpose(-1, -2)) @ value
    return _difference(query[:, -1:] @ gradient, attention)


def _attention_descends_an_energy(tokens: int, seed: int) -> float:
    _, stored, state, _ = drawn(tokens, seed)
    state = state.clone().requires_grad_()
    energy = state.square().sum() / 2 - (state @ stored.transpose(-1, -2)).logsumexp(-1).sum()
    (gradient,) = torch.autograd.grad(energy, state)
    attention = (state @ stored.transpose(-1, -2)).softmax(-1) @ stored
    return _difference(state - gradient, attention)


def _attention_passes_messages(tokens: int, seed: int) -> float:
    tokens = min(tokens, 512)  # there is an edge for each pair
    query, key, value, _ = drawn(tokens, seed)
    sender, receiver = torch.ones(tokens, tokens).nonzero().T
    weight = (query[:, receiver] * key[:, sender]).sum(-1, keepdim=True).exp()
    received = torch.zeros_like(value).index_add(1, receiver, weight * value[:, sender])
    total = torch.zeros_like(weight[:, :tokens]).index_add(1, receiver, weight)
    attention = (query @ key.transpose(-1, -2)).softmax(-1) @ value
    return _difference(received / total, attention)


def _heads_are_a_code(tokens: int, seed: int) -> float:
    query, key, value, _ = drawn(tokens, seed)
    generator = torch.Generator().manual_seed(seed)
    read, write = torch.randn(2, HEADS, WIDTH, WIDTH, dtype=torch.float64, generator=generator) / WIDTH**0.5
    x, code = value[0], (query @ key.transpose(-1, -2)).softmax(-1)
    attention = (code @ (x @ read) @ write).sum(0)
    # One query's layer for each key: the heads' matrices, mixed by how much each head attends.
    layers = torch.einsum("hk,hio->kio", code[:, -1], read @ write)
    return _difference(torch.einsum("ki,kio->o", x, layers), attention[-1])


def _feed_forward_asks_all_experts(tokens: int, seed: int) -> float:
    query, key, value, _ = drawn(tokens, seed)
    x, into, out = query[0], key[0, :64].T, value[0, :64]
    experts = zip(into.tensor_split(4, dim=1), out.tensor_split(4), strict=True)
    return _difference((x @ into).relu() @ out, torch.stack([(x @ a).relu() @ b for a, b in experts]).sum(0))


_LINKS = (
    Connection(
        "linear", "recurrent network", "Linear attention is a recurrent network with a matrix for a state and gate one.",
        "2006.16236", _linear_is_recurrent,
    ),
    Connection(
        "ssd", "linear", "Mamba-2 is linear attention under a mask: products of the gates between two tokens.",
        "2405.21060", _ssd_is_masked_attention,
    ),
    Connection(
        "retention", "ssd", "Retention is Mamba-2 whose gates are one constant.", "2405.21060", _retention_is_ssd
    ),
    Connection(
        "rwkv", "retention", "RWKV-6 with one constant gate g, queries times g and a bonus of 1 / g, is retention.",
        "2404.05892", _rwkv_is_retention,
    ),
    Connection(
        "hyena", "state-space model", "A state-space model that does not look at the tokens is a long convolution.",
        "2302.10866", _state_space_is_convolution,
    ),
    Connection(
        "linear", "fast weights", "Adding k v' to the state is a gradient step on the agreement of k S with v.",
        "2102.11174", _writing_is_learning,
    ),
    Connection(
        "attention", "associative memory", "Attention to stored patterns is a gradient step on a Hopfield energy.",
        "2008.02217", _attention_descends_an_energy,
    ),
    Connection(
        "attention", "graph network", "Attention is message passing on the graph in which all tokens are neighbours.",
        "1710.10903", _attention_passes_messages,
    ),
    Connection(
        "attention", "hyper-network", "What the heads attend with is a code from which a layer is made for each pair.",
        "2406.05816", _heads_are_a_code,
    ),
    Connection(
        "feed-forward network", "mixture of experts", "A feed-forward network is a mixture of experts that asks them all.",
        "1701.06538", _feed_forward_asks_all_experts,
    ),
)  # fmt: skip


def connections() -> tuple[Connection, ...]:
    """All exact connections."""
    return _LINKS
