"""Digits in motion: seeded videos of MNIST digits that fly in straight lines and bounce, with the boxes they are in.

As in Moving MNIST (arXiv 1502.04681), at half of its size: frames of 32 x 32 pixels, digits of 16 x 16.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from everyformer.catalog import Scale
from everyformer.lab import data

SIDE, DIGIT = 32, 16  # pixels of a frame and of a digit
SETS: dict[Scale, str] = {"smoke": "mnist_500", "cpu": "mnist_test", "paper": "mnist_train"}


@dataclasses.dataclass(frozen=True)
class Videos:
    """Videos in [-1, 1], the classes of their digits, and the boxes (left, top, right, bottom) in pixels."""

    frames: Float[Tensor, "batch frames 1 height width"]
    labels: Int[Tensor, "batch digits"]
    boxes: Float[Tensor, "batch frames digits 4"]


@dataclasses.dataclass(frozen=True)
class Digits:
    """Digits (samples, 16, 16) in [0, 1] and their classes."""

    images: Float[Tensor, "samples 16 16"]
    labels: Int[Tensor, " samples"]


def digits(scale: Scale, part: Literal["train", "test"]) -> Digits:
    """Four fifths of the digits to train on, or the others."""
    images, labels = data.digits(SETS[scale])
    small = F.avg_pool2d(F.pad(images.float()[:, None] / 255, (2, 2, 2, 2)), 2)[:, 0]
    cut = len(small) * 4 // 5
    kept = slice(cut) if part == "train" else slice(cut, None)
    return Digits(small[kept], labels[kept])


def paths(
    count: int, frames: int, generator: torch.Generator, *, speed: tuple[float, float] = (1.0, 3.0)
) -> Float[Tensor, "count frames 2"]:
    """Left and top edges (pixels) of digits that bounce; ``speed`` in pixels a frame."""
    room = float(SIDE - DIGIT)
    start = room * torch.rand(count, 1, 2, generator=generator)
    angle = 2 * torch.pi * torch.rand(count, 1, 1, generator=generator)
    pace = speed[0] + (speed[1] - speed[0]) * torch.rand(count, 1, 1, generator=generator)
    step = pace * torch.cat([angle.cos(), angle.sin()], -1)
    free = start + step * torch.arange(frames)[:, None]
    return room - (free.remainder(2 * room) - room).abs()  # a line, folded at the walls


def render(shown: Float[Tensor, "batch digits 16 16"], corners: Float[Tensor, "batch frames digits 2"]) -> Videos:
    """Videos of the given digits with their left and top edges at ``corners``, moved by parts of a pixel.

    The labels are left at zero. Where digits overlap the brighter pixel is seen.
    """
    batch, frames, number, _ = corners.shape
    # Where a pixel of the frame lies in the digit, in the coordinates of grid_sample: -1 and 1 are its outer edges.
    pixel = torch.arange(SIDE) + 0.5
    x = (2 * (pixel - corners[..., :1]) / DIGIT - 1)[..., None, :].expand(-1, -1, -1, SIDE, -1)
    y = (2 * (pixel - corners[..., 1:]) / DIGIT - 1)[..., :, None].expand(-1, -1, -1, -1, SIDE)
    grid = torch.stack([x, y], -1).flatten(0, 2)
    images = shown[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 2)[:, None]
    seen = F.grid_sample(images, grid, align_corners=False).view(batch, frames, number, 1, SIDE, SIDE)
    boxes = torch.cat([corners, corners + DIGIT], -1)
    return Videos(2 * seen.amax(2) - 1, torch.zeros(batch, number, dtype=torch.long), boxes)


def videos(source: Digits, count: int, frames: int, generator: torch.Generator, *, number: int = 1) -> Videos:
    """``count`` videos of ``number`` digits each, drawn and moved by the generator."""
    chosen = torch.randint(len(source.images), (count, number), generator=generator)
    corners = paths(count * number, frames, generator).view(count, number, frames, 2).transpose(1, 2)
    made = render(source.images[chosen], corners)
    return dataclasses.replace(made, labels=source.labels[chosen])
