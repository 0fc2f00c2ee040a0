"""DiTraj's positions and masks (arXiv 2509.21839): which token takes whose place, and which token may see which.

A video is a grid of tokens (frames, rows, columns), flattened with columns fastest, and ``boxes`` gives each frame's
foreground: first row, row after the last, first column, column after the last.

Attention between two tokens depends on how far apart their positions are, and falls with the distance. A subject that
moves is apart from itself in every other frame. STD-RoPE takes that distance away: the tokens inside the boxes get the
rows and columns of one and the same box in all frames, so that they see each other across frames as if nothing had
moved; frames keep their order, and the background keeps its positions.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from everyformer.parts.video_dit import Grid

SelfMask = Literal["redundant", "separate", "none"]


def foreground(boxes: Int[Tensor, "frames 4"], grid: Grid) -> Bool[Tensor, " tokens"]:
    """The tokens inside their frame's box. Raises ``ValueError`` if ``boxes`` do not fit ``grid``."""
    _check(boxes, grid)
    inside = torch.zeros(grid, dtype=torch.bool)
    for frame, (top, bottom, left, right) in enumerate(boxes.tolist()):
        inside[frame, top:bottom, left:right] = True
    return inside.flatten()


def sources(boxes: Int[Tensor, "frames 4"], grid: Grid, *, trim: int = 0) -> Int[Tensor, " tokens"]:
    """The token of its own frame whose position each token takes: itself, outside the boxes.

    The smallest box (the first of equals) lends its rows and columns. A larger box spreads the same rows and columns
    over more tokens: the denser its positions, the nearer the subject appears (3D-aware control).

    ``trim`` leaves out that many last rows and columns of every box; the authors' code leaves out 1.
    Raises ``ValueError`` if boxes do not fit the grid, or nothing is left of one.
    """
    _check(boxes, grid, trim)
    frames, rows, columns = grid
    heights, widths = (boxes[:, 1] - boxes[:, 0] - trim), (boxes[:, 3] - boxes[:, 2] - trim)
    base = int((heights * widths).argmin())
    origin = torch.arange(frames * rows * columns).reshape(grid).clone()
    taken = origin.clone()
    for frame, (top, bottom, left, right) in enumerate(boxes.tolist()):
        row = boxes[base, 0] + torch.linspace(0, int(heights[base]) - 1, bottom - top - trim).round().long()
        column = boxes[base, 2] + torch.linspace(0, int(widths[base]) - 1, right - left - trim).round().long()
        taken[frame, top : bottom - trim, left : right - trim] = origin[frame][row[:, None], column]
    return taken.flatten()


def std_rope(
    positions: Shaped[Tensor, "*batch tokens features"], boxes: Int[Tensor, "frames 4"], grid: Grid, *, trim: int = 0
) -> Shaped[Tensor, "*batch tokens features"]:
    """Spatial-temporal decoupled positions: foreground tokens take those of one box, the same in every frame.

    ``positions`` is whatever tells a model where its tokens are, a row per token: coordinates (frame, row, column), or
    the cosines or sines of a rotary embedding. Boxes that stay where they are change nothing.

    Raises ``ValueError`` as :func:`sources`, and if ``positions`` has another number of tokens.
    Source: arXiv 2509.21839, STD-RoPE.
    """
    tokens = grid[0] * grid[1] * grid[2]
    if positions.dim() < 2 or positions.shape[-2] != tokens:
        raise ValueError(
            f"positions must be (..., tokens, features) with the {tokens} tokens of grid {grid}, "
            f"got {tuple(positions.shape)}"
        )
    return positions[..., sources(boxes, grid, trim=trim).to(positions.device), :]


def cross_mask(inside: Bool[Tensor, " tokens"], background: int, foreground: int) -> Bool[Tensor, "tokens words"]:
    """What may be seen of a background prompt and a foreground prompt, in that order, of so many words each.

    Tokens inside the boxes see the foreground's words, the others the background's.
    """
    belongs = torch.arange(background + foreground, device=inside.device) >= background
    return inside[:, None] == belongs


def self_mask(
    boxes: Int[Tensor, "frames 4"], grid: Grid, kind: SelfMask, *, trim: int = 0
) -> Bool[Tensor, "tokens tokens"] | None:
    """Which video tokens may see each other: the options of the authors' code.

    ``redundant``: background tokens that stand where foreground tokens have been moved to, and foreground tokens do not
    see each other; belongs to :func:`std_rope` with the same ``trim``. ``separate``: foreground sees foreground,
    background sees background. ``none`` gives ``None``. Raises ``ValueError`` for another kind.
    """
    if kind not in get_args(SelfMask):
        raise ValueError(f"self_mask must be one of {get_args(SelfMask)}, got {kind!r}")
    if kind == "none":
        return None
    inside = foreground(boxes, grid)
    if kind == "separate":
        return inside[:, None] == inside[None, :]
    source = sources(boxes, grid, trim=trim)
    shared = source.bincount(minlength=len(source))[source] > 1
    redundant = shared & ~inside
    hidden = inside[:, None] & redundant[None, :]
    return ~(hidden | hidden.T)


def joint_mask(
    words: Int[Tensor, " words"], video: Int[Tensor, " tokens"], among_video: Bool[Tensor, "tokens tokens"] | None
) -> Bool[Tensor, "words+tokens words+tokens"]:
    """Which tokens may see each other where words and video are one sequence, words first.

    ``words`` and ``video`` say which group each belongs to. A word and a token, or two words, see each other if they are
    of one group; what video tokens see of one another, ``among_video`` says (``None``: everything).
    """
    groups = torch.cat([words, video])
    allowed = groups[:, None] == groups[None, :]
    allowed[len(words) :, len(words) :] = True if among_video is None else among_video
    return allowed


def _check(boxes: Tensor, grid: Grid, trim: int = 0) -> None:
    frames, rows, columns = grid
    if boxes.shape != (frames, 4) or boxes.is_floating_point():
        raise ValueError(
            f"boxes must be whole numbers (frames, 4) = ({frames}, 4), got {tuple(boxes.shape)} of {boxes.dtype}"
        )
    if trim < 0:
        raise ValueError(f"trim must be 0 or more, got {trim}")
    for frame, (top, bottom, left, right) in enumerate(boxes.tolist()):
        if min(top, left) < 0 or bottom > rows or right > columns:
            raise ValueError(
                f"boxes must lie inside {rows} rows and {columns} columns, got rows {top} to {bottom} and columns "
                f"{left} to {right} in frame {frame}"
            )
        if bottom - top <= trim or right - left <= trim:
            raise ValueError(
                f"boxes must not be empty (trim={trim}), got rows {top} to {bottom} and columns {left} to {right} "
                f"in frame {frame}"
            )
