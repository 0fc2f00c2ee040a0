"""Duo-causal attention (arXiv 2511.08577, section 3.2): a token sees earlier tokens at its own depth and at shallower ones.

Each depth has its own keys and values, which deeper passes read too. Causal in position and in depth, all tokens that go
to a depth can be computed at once, and a token's keys never change once a later token has seen them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from everyformer.parts.growing import grown

NAME = "duo_causal"  # in transformers' AttentionInterface


class Depth:
    """Keys and values of the tokens that have been at one depth; rows that had fewer hold unreal ones between."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # with room for more
        self.positions: Tensor | None = None  # (batch, tokens)
        self.real: Tensor | None = None  # (batch, tokens)

    def add(self, positions: Int[Tensor, "batch new"], real: Bool[Tensor, "batch new"]) -> None:
        """Announce tokens whose keys and values come next."""
        if self.positions is not None and self.real is not None:
            positions = torch.cat([self.positions, positions], dim=1)
            real = torch.cat([self.real, real], dim=1)
        self.positions, self.real = positions, real

    @property
    def length(self) -> int:
        """Tokens announced."""
        return 0 if self.positions is None else self.positions.shape[1]


class Memory:
    """What a model with ``depths`` depths has read so far, as keys and values of each depth and layer."""

    def __init__(self, depths: int) -> None:
        self.depths = [Depth() for _ in range(depths)]

    @property
    def length(self) -> int:
        """Tokens read, padding among them."""
        return self.depths[0].length

    def positions(self, real: Bool[Tensor, "batch new"]) -> Int[Tensor, "batch new"]:
        """Positions of new tokens: how many real ones stand before each."""
        kept = self.depths[0].real
        start = 0 if kept is None else kept.sum(1, keepdim=True)
        return (start + real.long().cumsum(1) - 1).clamp(min=0)

    def extended(self, layer: int, depth: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's newest keys and values at a depth; all up to this depth, the newest last."""
        own = self.depths[depth]
        before = own.length - keys.shape[2]
        old = own.layers.get(layer, (None, None))
        own.layers[layer] = grown(old[0], before, keys, dim=2), grown(old[1], before, values, dim=2)
        seen = [
            [room[:, :, : part.length] for room in part.layers[layer]]
            for part in self.depths[: depth + 1]
            if layer in part.layers
        ]
        if len(seen) == 1:
            return seen[0][0], seen[0][1]
        return torch.cat([pair[0] for pair in seen], dim=2), torch.cat([pair[1] for pair in seen], dim=2)

    def mask(self, depth: int, positions: Int[Tensor, "batch new"]) -> Bool[Tensor, "batch 1 new seen"]:
        """Which keys up to a depth the tokens see that were added to it last."""
        seen = [part for part in self.depths[: depth + 1] if part.positions is not None]
        at = torch.cat([part.positions for part in seen if part.positions is not None], dim=1)
        real = torch.cat([part.real for part in seen if part.real is not None], dim=1)
        mask = (at[:, None] <= positions[:, :, None]) & real[:, None]
        # Padding sees itself, since a softmax over nothing is not a number.
        new = positions.shape[1]
        itself = torch.eye(new, dtype=torch.bool, device=mask.device)
        mask = torch.cat([mask[:, :, :-new], mask[:, :, -new:] | itself], dim=2)
        return mask[:, None]


@dataclasses.dataclass
class Pass:
    """One pass through the layers, at a depth that counts from 0; without a mask it is causal and sees all."""

    memory: Memory
    depth: int
    mask: Bool[Tensor, "batch 1 new seen"] | None


def duo_causal_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads new head_dim"],
    key: Float[Tensor, "batch kv_heads new head_dim"],
    value: Float[Tensor, "batch kv_heads new head_dim"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    duo: Pass | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch new heads head_dim"], None]:
    """Attention of transformers' models in a pass; without one, plain attention as by ``sdpa``."""
    if duo is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    key, value = duo.memory.extended(int(module.layer_idx), duo.depth, key, value)  # type: ignore[arg-type]
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=duo.mask, dropout_p=dropout, scale=scaling,
        is_causal=duo.mask is None and query.shape[2] > 1, enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, duo_causal_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
