"""FNet (arXiv 2105.03824): a Fourier transform over tokens and channels, with nothing to learn."""

from __future__ import annotations

import torch
from torch import Tensor

from everyformer.parts.mixers.base import Cache, Mixer


class FNet(Mixer):
    """The real part of the transform (equation 3), divided by the root of its size so that tokens keep their scale."""

    can_be_causal = False
    takes_mask = False

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        precise = torch.promote_types(x.dtype, torch.float32)  # there is no FFT of bfloat16
        return torch.fft.fft2(x.to(precise), norm="ortho").real.to(x.dtype)
