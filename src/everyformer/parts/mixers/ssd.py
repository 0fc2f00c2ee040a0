"""Mamba-2 (arXiv 2405.21060): a state-space model whose parallel form is attention with a decaying mask.

The state of a head is a matrix: ``S_t = a_t S_{t-1} + k_t v_t'``, read by ``y_t = q_t S_t``. Written out,
``y = (L * q k') v`` where ``L[t, s]`` is the product of the gates a from s + 1 to t (section 5, "structured state space
duality"). Chunks are computed as that attention and linked by their states (section 6): the time is linear in tokens.
It is plain PyTorch on every device: the CUDA kernels of mamba-ssm are not used, not even where they are installed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.parts.mixers.base import Cache, Mixer, join_heads, split_heads

CHUNK = 64  # tokens


class SSD(Mixer):
    """The mixer of Mamba-2: short convolution, gated state space, gated norm.

    Args:
        state: rows of a head's state (the paper's N); query and key (its C and B) are shared by all heads.
        expand: width inside over ``dim``.
        conv: tokens that the short convolution sees.
    """

    must_be_causal = True
    takes_cache = True

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        causal: bool = True,
        length: int | None = None,
        state: int = 64,
        expand: int = 2,
        conv: int = 4,
    ) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if min(state, expand, conv) < 1:
            raise ValueError(f"state, expand and conv must be at least 1, got {state}, {expand} and {conv}")
        self.state, self.inner = state, expand * dim
        self.sizes = (self.inner, self.inner + 2 * state, heads)  # gate; value, key, query; step
        self.inside = nn.Linear(dim, sum(self.sizes), bias=False)
        self.conv = ShortConv(self.sizes[1], conv)
        # Gates at the start: steps from 0.001 to 0.1 in even ratios, rates from 1 to 16.
        step = torch.linspace(math.log(1e-3), math.log(1e-1), heads).exp()
        self.step_bias = nn.Parameter(step + (-torch.expm1(-step)).log())  # softplus of it is the step
        self.log_rate = nn.Parameter(torch.linspace(1, 16, heads).log())
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(self.inner, eps=1e-5)
        self.out = nn.Linear(self.inner, dim, bias=False)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        gate, inputs, step = self.inside(x).split(self.sizes, dim=-1)
        if mask is not None:
            inputs = inputs * mask[..., None]
        value, key, query = F.silu(self.conv(inputs, cache)).split((self.inner, self.state, self.state), dim=-1)
        value = split_heads(value, self.heads)
        precise = torch.promote_types(x.dtype, torch.float32)  # of what is exponentiated and added up over tokens
        step = F.softplus((step + self.step_bias).to(precise)).transpose(1, 2)
        if mask is not None:  # a step of no time: nothing is written and nothing forgotten
            step = step * mask[:, None]
        log_decay = -self.log_rate.to(precise).exp()[:, None] * step
        mixed, state = decayed_attention(
            query.unsqueeze(1),
            key.unsqueeze(1),
            value * step.unsqueeze(-1).to(value.dtype),
            log_decay,
            None if cache is None else cache.get("state"),
        )
        if cache is not None:
            cache["state"] = state
        mixed = torch.addcmul(mixed, value, self.skip[:, None, None].to(value.dtype))
        return self.out(self.norm(join_heads(mixed) * F.silu(gate)))  # type: ignore[no-any-return]


class ShortConv(nn.Conv1d):
    """A causal convolution of each channel over the last ``width`` tokens; a cache keeps those it needs."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(dim, dim, width, groups=dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"], cache: Cache | None = None) -> Tensor:  # type: ignore[override]
        """Tokens to tokens; what comes before the first is zero."""
        before = self.kernel_size[0] - 1
        if cache is None:
            x = F.pad(x, (0, 0, before, 0))
        else:
            past = cache.get("inputs", x.new_zeros(x.shape[0], before, x.shape[2]))
            x = torch.cat([past, x], dim=1)
            cache["inputs"] = x[:, x.shape[1] - before :]
        if x.shape[1] == before + 1:  # one token: no convolution
            found = torch.einsum("btd,dt->bd", x, self.weight[:, 0]).unsqueeze(1)
            return found if self.bias is None else found + self.bias
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def decayed_attention(
    query: Float[Tensor, "batch key_heads tokens state"],
    key: Float[Tensor, "batch key_heads tokens state"],
    value: Float[Tensor, "batch heads tokens head_dim"],
    log_decay: Float[Tensor, "#batch heads tokens"],
    state: Float[Tensor, "batch heads state head_dim"] | None = None,
) -> tuple[Float[Tensor, "batch heads tokens head_dim"], Float[Tensor, "batch heads state head_dim"]]:
    """``y_t = q_t S_t`` with ``S_t = exp(log_decay_t) S_{t-1} + k_t v_t'``, and the last state (section 6).

    Without decay it is linear attention, with a constant one retention.

    Args:
        query, key: of as many heads as ``value``, or of one that all share.
        log_decay: not above 0.
        state: before the first token; zero by default.
    """
    tokens = value.shape[2]
    precise = torch.promote_types(value.dtype, torch.float32)
    if state is None:
        state = value.new_zeros(*value.shape[:2], key.shape[-1], value.shape[-1], dtype=precise)
    if tokens == 1:
        state = log_decay.to(precise).exp().unsqueeze(-1) * state + key.transpose(-1, -2) * value
        return query @ state.to(value.dtype), state
    chunk = min(CHUNK, tokens)
    query, key, value = (_chunks(part, chunk) for part in (query, key, value))
    total = _chunks(log_decay.to(precise).unsqueeze(-1), chunk).cumsum(-2)  # since the chunk began
    ahead = torch.ones(chunk, chunk, dtype=torch.bool, device=value.device).triu(1)
    decay = (total - total.transpose(-1, -2)).masked_fill(ahead, -math.inf).exp().to(value.dtype)
    inside = (query @ key.transpose(-1, -2) * decay) @ value
    to_end = (total[..., -1:, :] - total).exp().to(value.dtype)
    written = key.transpose(-1, -2) @ (value * to_end)
    before, state = carried(written, total[..., -1, :].exp().unsqueeze(-1), state)
    mixed = torch.addcmul(inside, query @ before.to(value.dtype), total.exp().to(value.dtype))
    return mixed.flatten(2, 3)[:, :, :tokens], state


def carried(
    written: Float[Tensor, "batch heads chunks state head_dim"],
    decay: Float[Tensor, "#batch heads chunks #state 1"],
    state: Float[Tensor, "batch heads state head_dim"],
) -> tuple[Float[Tensor, "batch heads chunks state head_dim"], Float[Tensor, "batch heads state head_dim"]]:
    """The states before each chunk, and after the last: one pass over chunks."""
    before = []
    for new, kept in zip(written.unbind(2), decay.unbind(2), strict=True):
        before.append(state)
        state = torch.addcmul(new.to(state.dtype), kept, state)
    return torch.stack(before, dim=2), state


def _chunks(x: Float[Tensor, "batch heads tokens dim"], chunk: int) -> Float[Tensor, "batch heads chunks chunk dim"]:
    """Cut into chunks; the last is filled with zeros, which write nothing and do not decay."""
    missing = -x.shape[2] % chunk
    # Heads between each other's tokens are copied for a batched product, and by each product anew.
    return (F.pad(x, (0, 0, 0, missing)) if missing else x.contiguous()).unflatten(2, (-1, chunk))
