"""SLA as a token mixer: the common signature around :class:`~everyformer.papers.sla.layer.SparseLinearAttention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from everyformer.papers.sla.layer import SparseLinearAttention
from everyformer.parts.mixers import Mixer, join_heads, split_heads
from everyformer.parts.mixers.base import Cache


class SLAMixer(Mixer):
    """Exact attention to the blocks that matter, linear attention to the rest (arXiv 2509.24006).

    Weights of full attention load as they are: without a projection of the linear part, it is zero, as at the start.

    Args:
        options: of :class:`~everyformer.papers.sla.layer.SparseLinearAttention`, such as ``critical`` and ``block``.
    """

    can_be_causal = False
    takes_mask = False

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None, **options: Any
    ) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attention = SparseLinearAttention(self.head_dim, **options)
        self.out = nn.Linear(dim, dim, bias=False)
        self.register_load_state_dict_pre_hook(_without_projection)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(join_heads(self.attention(query, key, value)))  # type: ignore[no-any-return]


def _without_projection(module: SLAMixer, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Zeros for the projection where a state has none of its weights, as full attention's."""
    projection = {f"{prefix}attention.{name}": weight for name, weight in module.attention.named_parameters()}
    if not projection.keys() & state.keys():
        state.update({name: torch.zeros_like(weight) for name, weight in projection.items()})
