"""The tasks of VDT as masks: what of a video is given, and what is to be generated (arXiv 2305.13311, section 3.3).

A mask is true where the model generates and false where the video is given; the paper writes the complement.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

Task = Literal[
    "prediction", "backward", "interpolation", "unconditional", "animation", "arbitrary", "completion"
]  # fmt: skip
TASKS: tuple[Task, ...] = get_args(Task)
COMPLETION = 0.2  # share of completion among random masks; the other tasks are equally likely
SMALLEST, TRIES = 4.0, 10  # area (cells) and attempts of a block
ASPECT = math.log(1 / 0.3)
EDGE = 3  # at most so many frames at either end stay whole in completion


def task_mask(
    task: Task,
    frames: int,
    height: int,
    width: int,
    *,
    given: int | None = None,
    stride: int = 4,
    kept: float = 0.2,
    covered: float = 0.5,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "frames height width"]:
    """The mask of one video, as large as the model's frames: pixels, or the cells of latents.

    Args:
        task: ``prediction`` (first frames given), ``backward`` (last frames), ``interpolation`` (every ``stride``-th),
            ``unconditional`` (none), ``animation`` (one, drawn), ``arbitrary`` (each with probability ``kept``), or
            ``completion`` (whole but for a drawn group of blocks, the same in all but a few frames at the ends).
        given: frames given in ``prediction`` and ``backward``; half of all by default, which is the authors' 8 of 16.
        covered: share of a frame that the blocks of ``completion`` cover, at most.
        generator: of what is drawn.

    Raises:
        ValueError: an unknown task, or a number out of range.
    """
    given = frames // 2 if given is None else given
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    for name, size in (("frames", frames), ("height", height), ("width", width), ("stride", stride)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if not 0 <= given < frames:
        raise ValueError(f"given must be at least 0 and below frames={frames}, got {given}")
    for name, share in (("kept", kept), ("covered", covered)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {share}")

    if task == "completion":
        return _completion(frames, height, width, covered, generator)
    generated = torch.ones(frames, dtype=torch.bool)
    if task == "prediction":
        generated[:given] = False
    elif task == "backward":
        generated[frames - given :] = False
    elif task == "interpolation":
        generated[::stride] = False
    elif task == "animation":
        generated[_integer(0, frames - 1, generator)] = False
    elif task == "arbitrary":
        generated = torch.rand(frames, generator=generator) >= kept
    return generated[:, None, None].expand(-1, height, width).clone()


def random_masks(
    batch: int, frames: int, height: int, width: int, *, generator: torch.Generator | None = None
) -> Bool[Tensor, "batch frames height width"]:
    """A mask of a drawn task for each video of a batch: the mixture that one model is trained on.

    The authors draw one mask for a whole batch, and let a quarter of the completion masks ask for nothing: the slice
    ``[start:-0]`` is empty. Here it reaches the last frame.

    Raises ``ValueError`` if a size is below 1.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    masks = []
    for _ in range(batch):
        spatial = float(torch.rand((), generator=generator)) < COMPLETION
        task = "completion" if spatial else TASKS[_integer(0, len(TASKS) - 2, generator)]
        masks.append(task_mask(task, frames, height, width, generator=generator))
    return torch.stack(masks)


def _integer(low: int, high: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def _uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _completion(
    frames: int, height: int, width: int, covered: float, generator: torch.Generator | None
) -> Bool[Tensor, "frames height width"]:
    """Blocks at the same places of all frames but up to three at each end, fewer in a short video."""
    edge = min(EDGE, (frames - 1) // 2)
    start, end = _integer(0, edge, generator), _integer(0, edge, generator)
    mask = torch.zeros(frames, height, width, dtype=torch.bool)
    mask[start : frames - end] = _blocks(height, width, int(covered * height * width), generator)
    return mask


def _blocks(height: int, width: int, target: int, generator: torch.Generator | None) -> Bool[Tensor, "height width"]:
    """Rectangles of random area and shape until ``target`` cells are covered or none fits (BEiT, arXiv 2106.08254)."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    while (room := target - int(mask.sum())) > 0:
        for _ in range(TRIES):
            area = _uniform(SMALLEST, max(room, SMALLEST), generator)
            aspect = math.exp(_uniform(-ASPECT, ASPECT, generator))
            tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < tall < height and 0 < wide < width):
                continue
            top, left = _integer(0, height - tall, generator), _integer(0, width - wide, generator)
            block = mask[top : top + tall, left : left + wide]
            if 0 < int((~block).sum()) <= room:
                block[:] = True
                break
        else:
            break
    return mask
