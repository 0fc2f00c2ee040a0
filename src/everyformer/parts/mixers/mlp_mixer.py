"""MLP-Mixer (arXiv 2105.01601): a two-layer network over places, the same for each channel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.parts.mixers.base import Cache, Mixer


class MLPMixer(Mixer):
    """The token-mixing network (equation 1); its two matrices have ``length`` columns and rows.

    Args:
        hidden: width between them; half of ``length`` by default.
    """

    can_be_causal = False
    needs_length = True

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None, hidden: int | None = None
    ) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        assert length is not None
        hidden = max(1, length // 2) if hidden is None else hidden
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        self.up, self.down = nn.Linear(length, hidden), nn.Linear(hidden, length)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        tokens = x.shape[1]
        if mask is not None:
            x = x * mask[..., None]
        inside = F.gelu(F.linear(x.transpose(1, 2), self.up.weight[:, :tokens], self.up.bias))
        return F.linear(inside, self.down.weight[:tokens], self.down.bias[:tokens]).transpose(1, 2)
