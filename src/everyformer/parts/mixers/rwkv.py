"""RWKV-6, "Finch" (arXiv 2404.05892): linear attention with a gate per channel that the token sets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.parts.mixers.base import Cache, Mixer, join_heads, split_heads
from everyformer.parts.mixers.ssd import _chunks, carried

CHUNK = 16  # tokens
FASTEST = 5.0  # the most that a log gate falls in one token: e^-5 forgets; steeper ones would leave float's range


class RWKV(Mixer):
    """The time mixing of RWKV-6 (section 3.2): token shift that depends on the data, gated state, norm per head.

    Args:
        rank: of what the token adds to its five mixings with the token before it, and to its gates.
    """

    must_be_causal = True
    takes_cache = True

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = True, length: int | None = None, rank: int = 16
    ) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        channels = torch.linspace(0, 1, dim)
        self.shift = nn.Parameter(0.5 * torch.ones(6, dim))  # of the choice of shifts, then of r, k, v, gate, decay
        self.shift_down = nn.Linear(dim, 5 * rank, bias=False)
        self.shift_up = nn.Parameter(torch.empty(5, rank, dim).uniform_(-0.01, 0.01))
        self.decay = nn.Parameter(-6 + 5 * channels**0.85)  # log of minus the log gate: 400 tokens to 3
        self.decay_down = nn.Linear(dim, rank, bias=False)
        self.decay_up = nn.Linear(rank, dim, bias=False)
        nn.init.uniform_(self.decay_up.weight, -0.01, 0.01)
        self.bonus = nn.Parameter(0.5 * (1 - channels))  # of the token itself over what the state keeps of it
        self.receptance, self.key, self.value, self.gate, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(5))
        self.norm = nn.GroupNorm(heads, dim, eps=1e-5 * heads**2)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        if mask is not None:
            x = x * mask[..., None]
        past = x.new_zeros(x.shape[0], 1, self.dim) if cache is None or not cache else cache["last"]
        change = torch.cat([past, x[:, :-1]], dim=1) - x
        chosen = self.shift_down(torch.addcmul(x, change, self.shift[0])).tanh().unflatten(-1, (5, -1))
        shifts = torch.einsum("btir,ird->ibtd", chosen, self.shift_up) + self.shift[1:, None, None]
        to_read, to_key, to_value, to_gate, to_decay = (x + change * shift for shift in shifts)

        decay = self.decay + self.decay_up(self.decay_down(to_decay).tanh())
        log_decay = -decay.to(torch.promote_types(x.dtype, torch.float32)).exp().clamp(max=FASTEST)
        if mask is not None:  # what is not real is not written, and nothing is forgotten for it
            log_decay = log_decay * mask[..., None]
        key = self.key(to_key) if mask is None else self.key(to_key) * mask[..., None]
        query, key, value, log_decay = (
            split_heads(part, self.heads) for part in (self.receptance(to_read), key, self.value(to_value), log_decay)
        )
        bonus = self.bonus.unflatten(0, (self.heads, 1, -1))
        mixed, state = gated_attention(query, key, value, log_decay, bonus, cache.get("state") if cache else None)
        if cache is not None:
            cache["state"], cache["last"] = state, x[:, -1:]
        mixed = self.norm(join_heads(mixed).flatten(0, 1)).view_as(x)
        return self.out(mixed * F.silu(self.gate(to_gate)))  # type: ignore[no-any-return]


def gated_attention(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
    value: Float[Tensor, "batch heads tokens head_dim"],
    log_decay: Float[Tensor, "batch heads tokens head_dim"],
    bonus: Float[Tensor, "heads 1 head_dim"],
    state: Float[Tensor, "batch heads head_dim head_dim"] | None = None,
) -> tuple[Float[Tensor, "batch heads tokens head_dim"], Float[Tensor, "batch heads head_dim head_dim"]]:
    """``y_t = q_t (S_{t-1} + diag(bonus) k_t v_t')`` with ``S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t'`` (equation 19).

    Chunks are attention; the gates since the chunk's middle are put on queries and keys, so that their product is a
    matrix product.

    Args:
        log_decay: from -5 to 0.
        state: before the first token; zero by default.
    """
    tokens, kind = value.shape[2], value.dtype
    precise = torch.promote_types(kind, torch.float32)
    query, key, value, log_decay, bonus = (part.to(precise) for part in (query, key, value, log_decay, bonus))
    if state is None:
        state = value.new_zeros(*value.shape[:2], key.shape[-1], value.shape[-1])
    itself = (query * bonus * key).sum(-1, keepdim=True) * value
    if tokens == 1:
        written = key.transpose(-1, -2) * value
        return (query @ state + itself).to(kind), log_decay.exp().transpose(-1, -2) * state + written
    chunk = min(CHUNK, tokens)
    query, key, value, log_decay = (_chunks(part, chunk) for part in (query, key, value, log_decay))
    total = log_decay.cumsum(-2)
    before_it, middle, end = total - log_decay, total[..., chunk // 2, None, :], total[..., -1:, :]
    scores = (query * (before_it - middle).exp()) @ (key * (middle - total).exp()).transpose(-1, -2)
    written = (key * (end - total).exp()).transpose(-1, -2) @ value
    before, state = carried(written, end.exp().transpose(-1, -2), state)
    mixed = scores.tril(-1) @ value + (query * before_it.exp()) @ before
    return (mixed.flatten(2, 3)[:, :, :tokens] + itself).to(kind), state
