"""The transform by its equations, with dense matrices: the truth for small sizes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.ops.dwt.filters import analysis_filters, sources


def haar2d(x: Float[Tensor, "batch channels height width"], levels: int = 1) -> tuple[Tensor, list[Tensor]]:
    """Haar: of each 2 x 2 cell (a b; c d) the mean and the three differences, all times two; again on the low part."""
    highs = []
    for _ in range(levels):
        a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
        highs.append(torch.stack([a + b - c - d, a - b + c - d, a - b - c + d], dim=2) / 2)
        x = (a + b + c + d) / 2
    return x, highs


def ihaar2d(
    low: Float[Tensor, "batch channels height width"], highs: list[Tensor]
) -> Float[Tensor, "batch channels full_height full_width"]:
    """The inverse, which is the transpose: the four equations solved for a, b, c, d."""
    for high in reversed(highs):
        rows, columns, cross = high.unbind(2)
        a, b = low + rows + columns + cross, low + rows - columns - cross
        c, d = low - rows + columns - cross, low - rows - columns + cross
        low = torch.stack([torch.stack([a, b], -1).flatten(-2), torch.stack([c, d], -1).flatten(-2)], -2).flatten(
            -3, -2
        )
        low = low / 2
    return low


def analysis_matrix(wavelet: str, size: int, mode: str) -> Float[Tensor, "two outputs size"]:
    """The low-pass and the high-pass of a signal of ``size`` samples as two matrices, continuation included."""
    filters = torch.tensor(analysis_filters(wavelet), dtype=torch.float64)
    taps = filters.shape[1]
    place = sources(size, taps, mode)
    outputs = (len(place) - taps) // 2 + 1
    matrix = torch.zeros(2, outputs, size + 1, dtype=torch.float64)
    for k in range(outputs):
        matrix[:, k].index_add_(1, place[2 * k : 2 * k + taps], filters.flip(1))
    return matrix[..., :size]  # the last column multiplied zeros


def dwt2d(
    x: Float[Tensor, "batch channels height width"], wavelet: str, levels: int = 1, mode: str = "periodization"
) -> tuple[Tensor, list[Tensor]]:
    """A x B^T for the pairs of low-pass and high-pass along height and width; again on the low part."""
    highs = []
    for _ in range(levels):
        down = analysis_matrix(wavelet, x.shape[-2], mode).to(x)
        across = analysis_matrix(wavelet, x.shape[-1], mode).to(x)
        bands = torch.einsum("phy,qwx,ncyx->pqnchw", down, across, x)
        highs.append(torch.stack([bands[1, 0], bands[0, 1], bands[1, 1]], dim=2))
        x = bands[0, 0]
    return x, highs
