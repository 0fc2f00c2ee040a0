"""Daubechies filters from their definition, and how a signal is continued beyond its ends."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Mode = Literal["periodization", "symmetric", "zero"]
MODES: tuple[str, ...] = get_args(Mode)


def _daubechies(order: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Low-pass and high-pass with 2 x order coefficients.

    The low-pass is (1 + z)^p q(z) for order p, where q has the roots inside the unit circle of
    sum_k C(p - 1 + k, k) y^k with y = (2 - z - 1/z) / 4, scaled to the sum sqrt(2) (Daubechies 1988, section 4).
    The high-pass is its alternating flip.
    """
    in_y = [math.comb(order - 1 + k, k) for k in reversed(range(order))]
    inside = []
    for y in np.roots(in_y):
        pair = np.roots([1, 4 * y - 2, 1])  # z and 1/z
        inside.append(pair[np.argmin(abs(pair))])
    low = np.real(np.poly([-1.0] * order + inside))
    low *= math.sqrt(2) / low.sum()
    high = low * (-1.0) ** np.arange(1, 2 * order + 1)
    return tuple(low[::-1].tolist()), tuple(high.tolist())


# Beyond order 8 the roots lose digits. Made once, so that compiled code finds plain numbers.
FILTERS = {f"db{order}": _daubechies(order) for order in range(1, 9)}
FILTERS["haar"] = FILTERS["db1"]


def analysis_filters(wavelet: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Low-pass and high-pass of ``haar`` or ``db1`` to ``db8``.

    Raises:
        ValueError: another name.
    """
    if wavelet not in FILTERS:
        raise ValueError(f"wavelet must be one of {', '.join(sorted(FILTERS))}, got {wavelet!r}")
    return FILTERS[wavelet]


def check_mode(mode: str) -> None:
    """Raises ``ValueError`` for a mode that is not one of ``MODES``."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")


def sources(size: int, taps: int, mode: str, device: torch.device | str = "cpu") -> Tensor:
    """Which sample stands at each place of the continued signal; ``size`` itself stands for a zero.

    Output k of a filter h is sum_j h[j] x[2k + s - j], with s = taps / 2 for ``periodization`` (as many outputs as
    pairs of samples; an odd signal has its last sample twice) and s = 1 otherwise ((size + taps - 1) // 2 outputs).
    The first place is the one that output 0 reads with j = taps - 1.
    """
    if mode == "periodization":
        outputs, shift = (size + 1) // 2, taps // 2
    else:
        outputs, shift = (size + taps - 1) // 2, 1
    place = torch.arange(2 * (outputs - 1) + taps, device=device) + shift - taps + 1
    if mode == "periodization":
        return (place % (2 * outputs)).clamp(max=size - 1)
    if mode == "symmetric":
        folded = place % (2 * size)
        return torch.minimum(folded, 2 * size - 1 - folded)
    return torch.where((place >= 0) & (place < size), place, size)
