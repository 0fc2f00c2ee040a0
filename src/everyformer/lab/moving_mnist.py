"""Moving MNIST (arXiv 1502.04681) as OpenSTL (arXiv 2306.11249) generates it: two digits that fly and bounce, whole pixels.

Every sequence is drawn afresh. The standard set to test on is a fixed file of the authors' (:func:`standard_test`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from everyformer.catalog import Scale
from everyformer.lab import data

SPEED = 0.1  # of the room that a digit has, a frame
STANDARD = "http://www.cs.toronto.edu/~nitish/unsupervised_video/mnist_test_seq.npy"


def corners(
    start: Float[Tensor, "paths 2"], angle: Float[Tensor, " paths"], frames: int, room: int
) -> Int[Tensor, "paths frames 2"]:
    """Left and top edges (pixels) of digits in the frames after their start.

    Args:
        start: places in [0, 1], as shares of the room: across, down.
        angle: direction of motion in radians.
        room: pixels that a digit can move, the side of a frame less its own.
    """
    step = SPEED * torch.stack([angle.cos(), angle.sin()], -1)
    place, found = start, []
    for _ in range(frames):
        place = place + step
        # What has reached a wall stays there for this frame, and turns.
        step = torch.where((place <= 0) | (place >= 1), -step, step)
        place = place.clamp(0, 1)
        found.append(place)
    return (room * torch.stack(found, 1)).to(torch.int64)  # towards zero


def render(
    images: Float[Tensor, "batch digits side side"], edges: Int[Tensor, "batch digits frames 2"], size: int
) -> Float[Tensor, "batch frames 1 size size"]:
    """Frames of ``size`` x ``size`` with the digits' left and top edges at ``edges``; the brighter one is seen."""
    room = size - images.shape[-1]
    # A frame is a window of the digit with nothing around it.
    windows = F.pad(images, (room,) * 4).unfold(2, size, 1).unfold(3, size, 1)
    batch = torch.arange(len(images))[:, None, None]
    digit = torch.arange(images.shape[1])[:, None]
    return windows[batch, digit, room - edges[..., 1], room - edges[..., 0]].amax(1)[:, :, None]


@dataclasses.dataclass(frozen=True)
class MovingMNIST:
    """A source of sequences.

    Args:
        images: digits (samples, side, side) in [0, 1].
        frames: frames of a sequence; the first half is given, by custom.
        size: side of a frame in pixels; must be larger than a digit.
        number: digits in a sequence.

    Raises:
        ValueError: digits that are not square or do not fit, no digits, or fewer than one frame or digit.
    """

    images: Float[Tensor, "samples side side"]
    frames: int = 20
    size: int = 64
    number: int = 2

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if len(shape) != 3 or shape[1] != shape[2] or not shape[0]:
            raise ValueError(f"images must be (samples, side, side) of at least one digit, got {shape}")
        if self.size <= shape[1]:
            raise ValueError(f"size must be larger than the digits' side of {shape[1]}, got {self.size}")
        for name, value in (("frames", self.frames), ("number", self.number)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count frames 1 size size"]:
        """``count`` sequences in [0, 1]."""
        paths = count * self.number
        chosen = torch.randint(len(self.images), (count, self.number), generator=generator)
        start = torch.rand(paths, 2, generator=generator, dtype=torch.float64)
        angle = 2 * torch.pi * torch.rand(paths, generator=generator, dtype=torch.float64)
        edges = corners(start, angle, self.frames, self.size - self.images.shape[-1])
        return render(self.images[chosen], edges.view(count, self.number, self.frames, 2), self.size)


def digits(scale: Scale, part: Literal["train", "test"]) -> Float[Tensor, "samples 28 28"]:
    """Digits in [0, 1] to train on, or others to test on.

    At ``paper`` scale MNIST's own two parts; otherwise four fifths of a smaller set and the rest.
    """
    if scale == "paper":
        images, _ = data.digits("mnist_train" if part == "train" else "mnist_test")
        return images / 255
    images, _ = data.digits("mnist_500" if scale == "smoke" else "mnist_test")
    cut = len(images) * 4 // 5
    return (images[:cut] if part == "train" else images[cut:]) / 255


def halved(images: Float[Tensor, "samples 28 28"]) -> Float[Tensor, "samples 14 14"]:
    """Digits at half of their size, for frames of 32 x 32: the mean of every 2 x 2 pixels."""
    return F.avg_pool2d(images[:, None], 2)[:, 0]


def standard_test(path: str | Path) -> Float[Tensor, "sequences 20 1 64 64"]:
    """The 10,000 sequences that the literature tests on, in [0, 1], from the authors' file.

    Raises:
        FileNotFoundError: there is no such file; the message says where it is published.
        ValueError: the file holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"path must be mnist_test_seq.npy, got {path}: fetch {STANDARD} (800 MB) and put it there"
        )
    held = np.load(path, mmap_mode="r", allow_pickle=False)
    if held.ndim != 4 or held.shape[0] != 20 or held.shape[2:] != (64, 64) or held.dtype != np.uint8:
        raise ValueError(f"{path} must hold bytes (20, sequences, 64, 64), got {held.dtype} {held.shape}")
    return torch.from_numpy(held.swapaxes(0, 1).copy())[:, :, None] / 255
