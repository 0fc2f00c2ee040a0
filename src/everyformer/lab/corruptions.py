"""Corrupted pictures, to see how a network trained on clean ones degrades: six kinds, five severities, fixed by a seed.

Made for 32 x 32 pixels. They are the lab's own: figures compare with each other, not with published benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

SEVERITIES = (1, 2, 3, 4, 5)
Values = Float[Tensor, "batch channels height width"]  # between 0 and 1


def _noise(images: Values, severity: int, generator: torch.Generator) -> Values:
    return images + 0.04 * severity * torch.randn(images.shape, generator=generator)


def _salt_and_pepper(images: Values, severity: int, generator: torch.Generator) -> Values:
    """Whole pixels turn black or white."""
    batch, _, height, width = images.shape
    chance = torch.rand(batch, 1, height, width, generator=generator)
    share = 0.02 * severity
    return images.masked_fill(chance < share / 2, 0.0).masked_fill(chance > 1 - share / 2, 1.0)


def _blur(images: Values, severity: int, generator: torch.Generator) -> Values:
    from torchvision.transforms.v2.functional import gaussian_blur

    return gaussian_blur(images, kernel_size=[9, 9], sigma=[0.3 + 0.2 * severity])  # type: ignore[no-any-return]


def _contrast(images: Values, severity: int, generator: torch.Generator) -> Values:
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (1 - 0.16 * severity) * (images - mean)


def _brightness(images: Values, severity: int, generator: torch.Generator) -> Values:
    """Every other picture brighter, the rest darker."""
    sign = torch.randint(2, (len(images), 1, 1, 1), generator=generator) * 2 - 1
    return images + 0.07 * severity * sign


def _pixelate(images: Values, severity: int, generator: torch.Generator) -> Values:
    height, width = images.shape[-2:]
    kept = 1 - 0.12 * severity
    small = F.interpolate(images, size=(max(1, round(kept * height)), max(1, round(kept * width))), mode="area")
    return F.interpolate(small, size=(height, width), mode="nearest")


CORRUPTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "noise": _noise,
    "salt and pepper": _salt_and_pepper,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "pixels": _pixelate,
}


def corrupted(
    images: UInt8[Tensor, "batch channels height width"], kind: str, severity: int, seed: int = 0
) -> UInt8[Tensor, "batch channels height width"]:
    """The pictures, corrupted: the same ones for the same seed.

    Args:
        images: pictures on the CPU.
        kind: one of :data:`CORRUPTIONS`.
        severity: 1 (mild) to 5.
        seed: what noise is drawn.

    Raises:
        ValueError: an unknown kind or severity.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS)}, got {kind!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {SEVERITIES}, got {severity}")
    generator = torch.Generator().manual_seed(seed)
    changed = CORRUPTIONS[kind](images.float() / 255, severity, generator)
    return (255 * changed.clamp(0, 1)).round().to(torch.uint8)
