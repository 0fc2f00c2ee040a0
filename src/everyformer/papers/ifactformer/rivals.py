"""What IFactFormer is compared with: the Fourier neural operator, and its implicit form."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from neuralop.layers.spectral_convolution import SpectralConv
from neuralop.models import FNO as _FNO
from torch import Tensor, nn


class FNO(nn.Module):
    """The Fourier neural operator (arXiv 2010.08895), neuraloperator's, on fields with their channels last.

    Takes u (batch, 1, *grid, channels); gives (batch, *grid, channels). ``modes`` are kept along each axis.
    """

    def __init__(self, channels: int, *, modes: tuple[int, ...], width: int, layers: int = 4) -> None:
        super().__init__()
        self.network = _FNO(
            n_modes=modes, in_channels=channels, out_channels=channels, hidden_channels=width, n_layers=layers
        )
        self.register_state_dict_post_hook(_tensors_only)

    def forward(self, u: Float[Tensor, "batch 1 *grid channels"]) -> Float[Tensor, "batch *grid channels"]:
        return self.network(u[:, 0].movedim(-1, 1)).movedim(1, -1)  # type: ignore[no-any-return]


def _tensors_only(module: nn.Module, state: dict[str, Any], *_: object) -> None:
    """neuraloperator writes the options of its constructor among the weights."""
    state.pop("_metadata", None)


class IFNO(nn.Module):
    """The implicit Fourier neural operator (arXiv 2203.08205): one Fourier layer applied ``iterations`` times.

    Each time the field moves on by 1 / ``iterations`` of what the layer gives. Shapes as :class:`FNO`.
    """

    def __init__(self, channels: int, *, modes: tuple[int, ...], width: int, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.lift = nn.Sequential(nn.Linear(channels, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.spectral = SpectralConv(width, width, n_modes=modes)
        self.local = nn.Linear(width, width)
        self.project = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, channels))

    def forward(self, u: Float[Tensor, "batch 1 *grid channels"]) -> Float[Tensor, "batch *grid channels"]:
        x = self.lift(u[:, 0])
        for _ in range(self.iterations):
            spectral = self.spectral(x.movedim(-1, 1)).movedim(1, -1)
            x = x + F.gelu(spectral + self.local(x)) / self.iterations
        return self.project(x)  # type: ignore[no-any-return]
