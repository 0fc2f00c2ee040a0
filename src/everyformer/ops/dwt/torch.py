"""The transform in plain torch, for any device: no loop over positions, each level one read and one write or so.

Bands are named as PyWavelets names them and come in its order: differences along the rows' axis (cH), along the
columns' axis (cV), along both (cD). Highs are listed finest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from everyformer.ops.dwt import reference
from everyformer.ops.dwt.filters import analysis_filters, check_mode, sources


def haar2d(
    x: Float[Tensor, "batch channels height width"], levels: int = 1
) -> tuple[Float[Tensor, "batch channels low_height low_width"], list[Tensor]]:
    """The Haar transform: the low part, and for each level its highs (batch, channels, 3, height, width).

    Orthonormal: energy is kept, and :func:`ihaar2d` gives ``x`` back.

    Raises:
        ValueError: ``levels`` below 1, or a height or width that is not divisible by 2 ** levels.
    """
    _check(x, levels)
    _check_even(x, levels)
    channels, highs = x.shape[1], []
    for _ in range(levels):
        bands = haar_split(x)
        x = bands[:, :channels]
        highs.append(bands[:, channels:].unflatten(1, (channels, 3)))
    return x, highs


def ihaar2d(
    low: Float[Tensor, "batch channels height width"], highs: Sequence[Tensor]
) -> Float[Tensor, "batch channels full_height full_width"]:
    """The inverse of :func:`haar2d`.

    Raises:
        ValueError: highs whose shapes do not belong to ``low``.
    """
    for high in reversed(highs):
        _check_high(low, high)
        if torch.compiler.is_compiling():  # the compiler fuses the equations itself
            low = reference.ihaar2d(low, [high])
        else:
            low = _Merge.apply(torch.cat([low, high.flatten(1, 2)], dim=1))
    return low


def haar_split(
    x: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch 4*channels half_height half_width"]:
    """One Haar level with all bands in one tensor: first the low part, then the highs with the band fastest.

    Channel c of band k is at ``channels + 3 * c + k``. Height and width must be even.
    """
    if torch.compiler.is_compiling():
        low, (high,) = reference.haar2d(x)
        return torch.cat([low, high.flatten(1, 2)], dim=1)
    return _Split.apply(x)


def _split(x: Tensor) -> Tensor:
    """(a b; c d) of each cell to sums and differences over two. Halves of a sum are means, so nothing is scaled."""
    batch, channels, height, width = x.shape
    out = x.new_empty(batch, 4 * channels, height // 2, width // 2)
    low, high = out[:, :channels], out[:, channels:].unflatten(1, (channels, 3))
    top, bottom = x[..., ::2, :], x[..., 1::2, :]
    total, change = top + bottom, top - bottom  # along whole rows, which are contiguous
    for rows, (plus, minus) in ((total, (low, high[:, :, 1])), (change, (high[:, :, 0], high[:, :, 2]))):
        left, right = rows[..., ::2], rows[..., 1::2]
        mean = torch.lerp(left, right, 0.5)
        plus.copy_(mean)
        minus.copy_(left - mean)
    return out


def _merge(bands: Tensor) -> Tensor:
    """The inverse and transpose of :func:`_split`."""
    channels = bands.shape[1] // 4
    low, high = bands[:, :channels], bands[:, channels:].unflatten(1, (channels, 3))
    rows, columns, cross = high.unbind(2)
    batch, _, height, width = low.shape
    out = bands.new_empty(batch, channels, 2 * height, 2 * width)
    upper, lower = low + rows, low - rows
    left, right = columns + cross, columns - cross
    for place, (mean, half) in enumerate(((upper, left), (lower, right))):
        out[..., place::2, ::2] = (mean + half).mul_(0.5)
        out[..., place::2, 1::2] = (mean - half).mul_(0.5)
    return out


class _Split(torch.autograd.Function):
    """Its gradient is the inverse transform: nothing needs to be kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _split(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Merge.apply(grad)


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bands: Tensor) -> Tensor:
        return _merge(bands)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Split.apply(grad)


def dwt2d(
    x: Float[Tensor, "batch channels height width"], wavelet: str = "haar", levels: int = 1, mode: str = "periodization"
) -> tuple[Tensor, list[Tensor]]:
    """The transform by ``haar`` or ``db1`` to ``db8``, of any height and width, with PyWavelets' conventions.

    ``mode`` says what lies beyond the edges: ``periodization`` (the signal again, and no more coefficients than
    samples), ``symmetric`` (the signal mirrored) or ``zero``.

    Raises:
        ValueError: an unknown wavelet or mode, or ``levels`` below 1.
    """
    _check(x, levels)
    check_mode(mode)
    highs = []
    for _ in range(levels):
        bands = _analyse(_analyse(x.unsqueeze(2), wavelet, mode, -1), wavelet, mode, -2)
        x = bands[:, :, 0]
        highs.append(bands[:, :, 1:])  # (low along width, high along height), (high, low), (high, high)
    return x, highs


def idwt2d(
    low: Float[Tensor, "batch channels height width"],
    highs: Sequence[Tensor],
    wavelet: str = "haar",
    mode: str = "periodization",
    size: tuple[int, int] | None = None,
) -> Float[Tensor, "batch channels full_height full_width"]:
    """The inverse of :func:`dwt2d`; ``size`` is needed where the original height or width was odd.

    Raises:
        ValueError: an unknown wavelet or mode, or highs whose shapes do not belong to ``low``.
    """
    check_mode(mode)
    for high in reversed(highs):
        low = low[..., : high.shape[-2], : high.shape[-1]]  # a level above gave one too many where a side was odd
        _check_high(low, high)
        bands = torch.cat([low.unsqueeze(2), high], dim=2)
        low = _synthesise(_synthesise(bands, wavelet, mode, -2), wavelet, mode, -1).squeeze(2)
    return low if size is None else low[..., : size[0], : size[1]]


def _analyse(bands: Float[Tensor, "batch channels bands height width"], wavelet: str, mode: str, axis: int) -> Tensor:
    """Both filters along ``axis``, keeping every other output; each of the bands becomes two, low then high."""
    filters = analysis_filters(wavelet)
    taps = len(filters[0])
    place = sources(bands.shape[axis], taps, mode, bands.device)
    if mode == "zero":
        bands = F.pad(bands, (0, 1) if axis == -1 else (0, 0, 0, 1))
    # Even and odd samples apart: every tap then reads a run of neighbours, and the loop is over taps alone.
    phases = [part.contiguous() for part in bands.index_select(axis, place).unflatten(axis, (-1, 2)).unbind(axis)]
    outputs = phases[0].shape[axis] - taps // 2 + 1
    parts = [phases[tap % 2].narrow(axis, tap // 2, outputs) for tap in range(taps)]
    return torch.stack([_weighted(parts, weights[::-1]) for weights in filters], dim=3).flatten(2, 3)


def _synthesise(
    bands: Float[Tensor, "batch channels bands height width"], wavelet: str, mode: str, axis: int
) -> Tensor:
    """The transpose of :func:`_analyse` for a signal of even size: pairs of bands become one."""
    filters = [weights[::-1] for weights in analysis_filters(wavelet)]
    taps, outputs = len(filters[0]), bands.shape[axis]
    beyond = taps // 2 - 1
    bands = F.pad(bands, (beyond, beyond) if axis == -1 else (0, 0, beyond, beyond))
    pair = bands.unflatten(2, (-1, 2)).unbind(3)
    phases = []
    for phase in (0, 1):
        parts = [part.narrow(axis, beyond - i, outputs + beyond) for part in pair for i in range(taps // 2)]
        phases.append(_weighted(parts, [weight for weights in filters for weight in weights[phase::2]]))
    last = phases[0].ndim if axis == -1 else phases[0].ndim - 1
    full = torch.stack(phases, dim=last).flatten(last - 1, last)
    if mode != "periodization":  # what was put beyond the edges is dropped
        return full.narrow(axis, taps - 2, 2 * outputs - taps + 2)
    shape = list(full.shape)
    shape[axis] = 2 * outputs
    place = sources(2 * outputs, taps, mode, full.device)
    return full.new_zeros(shape).index_add(axis, place, full)


def _weighted(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total = total.add(part, alpha=weight)
    return total


def _check(x: Tensor, levels: int) -> None:
    if x.ndim != 4:
        raise ValueError(f"x must have shape (batch, channels, height, width), got {tuple(x.shape)}")
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")


def _check_even(x: Tensor, levels: int) -> None:
    for name, size in (("height", x.shape[-2]), ("width", x.shape[-1])):
        if size % 2**levels:
            raise ValueError(f"{name} must be divisible by {2**levels} for {levels} levels, got {size}")


def _check_high(low: Tensor, high: Tensor) -> None:
    expected = (*low.shape[:2], 3, *low.shape[2:])
    if tuple(high.shape) != expected:
        raise ValueError(f"highs must have shape {expected} at this level, got {tuple(high.shape)}")
