"""Trajectories: boxes at keyframes, interpolated over a video; JSON files of them, and pictures that show them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from everyformer.files import write_atomic
from everyformer.parts.video_dit import Grid

if TYPE_CHECKING:
    from PIL.Image import Image

SLACK = 1e-6  # of a frame's side: what rounding may add to a fraction


class Keyframe(NamedTuple):
    """A box in one frame; its edges are fractions of the frame's height and width, counted from the top left."""

    frame: int
    top: float
    bottom: float
    left: float
    right: float


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Where the subject is in each of ``frames`` frames of a video: boxes at ``keyframes``, straight lines between.

    Keyframes are (frame, top, bottom, left, right), as in the authors' code. Before the first and after the last one
    the box goes on as it moved next to it, without changing its size; a single box stays where it is.

    Raises ``ValueError`` for boxes that are empty or leave the frame, frames that are out of order or not in the video,
    and fewer frames than keyframes. Source: arXiv 2509.21839 (authors' code, ``plan_path``).
    """

    keyframes: Sequence[Keyframe | Sequence[float]]
    frames: int

    def __post_init__(self) -> None:
        if not self.keyframes:
            raise ValueError("keyframes must hold at least one box")
        for key in self.keyframes:
            if len(key) != 5 or int(key[0]) != key[0]:
                raise ValueError(f"keyframes must be (frame, top, bottom, left, right) each, got {tuple(key)}")
        if self.frames < len(self.keyframes):
            raise ValueError(
                f"frames must be at least the number of keyframes, got frames={self.frames} "
                f"for {len(self.keyframes)} keyframes"
            )
        keys = tuple(Keyframe(int(key[0]), *(float(edge) for edge in key[1:])) for key in self.keyframes)
        for key, following in itertools.pairwise(keys):
            if following.frame <= key.frame:
                raise ValueError(
                    f"keyframes must be in rising order of frames, got {following.frame} after {key.frame}"
                )
        for key in keys:
            if not 0 <= key.frame < self.frames:
                raise ValueError(f"keyframes must lie in frames 0 to {self.frames - 1}, got frame {key.frame}")
            _check_box(key.frame, key[1:])
        object.__setattr__(self, "keyframes", keys)
        for frame, box in enumerate(self.path().tolist()):
            _check_box(frame, box)

    def path(self) -> Float[Tensor, "frames 4"]:
        """Top, bottom, left and right of every frame's box, as fractions of the frame, in float64."""
        keys = torch.tensor([tuple(key) for key in self.keyframes], dtype=torch.float64)
        times, edges = keys[:, 0].long(), keys[:, 1:]
        first, last = int(times[0]), int(times[-1])
        lines = [edges[:1]]
        for start, end, ahead in zip(edges, edges[1:], times.diff().tolist(), strict=False):
            lines.append(start + (end - start) * torch.arange(1, ahead + 1)[:, None] / ahead)
        path = torch.cat(lines)
        # How the top left corner moves is how the box moves.
        moves = path.diff(dim=0)[:, [0, 0, 2, 2]] if len(path) > 1 else torch.zeros_like(path)
        back = torch.arange(first, 0, -1)[:, None]
        on = torch.arange(1, self.frames - last)[:, None]
        return torch.cat([path[:1] - back * moves[:1], path, path[-1:] + on * moves[-1:]])

    def tokens(self, grid: Grid) -> Int[Tensor, "frames 4"]:
        """Boxes on a model's grid of tokens: first row, row after the last, first column, column after the last.

        Frames of tokens are taken evenly from the video's, the first and the last included, and edges are rounded down,
        as in the authors' code. Raises ``ValueError`` if the grid has more frames than the video, or a box has no token.
        """
        frames, rows, columns = grid
        if frames > self.frames:
            raise ValueError(f"grid has {frames} frames of tokens, more than the trajectory's {self.frames} frames")
        chosen = torch.linspace(0, self.frames - 1, frames, dtype=torch.float64).round().long()
        sides = torch.tensor([rows, rows, columns, columns], dtype=torch.float64)
        boxes = (self.path()[chosen] * sides + SLACK).floor().long()
        for frame, (top, bottom, left, right) in enumerate(boxes.tolist()):
            if bottom <= top or right <= left:
                raise ValueError(
                    f"keyframes give a box without tokens in frame {frame} of {frames}: rows {top} to {bottom} of {rows}, "
                    f"columns {left} to {right} of {columns}"
                )
        return boxes

    def write(self, path: str | Path) -> Path:
        """Write a JSON file ``{"frames": ..., "keyframes": [[frame, top, bottom, left, right], ...]}``."""
        return write_atomic(Path(path), json.dumps({"frames": self.frames, "keyframes": self.keyframes}) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Trajectory:
        """From a file of :meth:`write`; raises ``ValueError`` if it holds something else."""
        try:
            content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(keyframes=[tuple(key) for key in content["keyframes"]], frames=content["frames"])
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} must be a JSON file with frames and keyframes: {error!r}") from error


def _check_box(frame: int, box: Sequence[float]) -> None:
    top, bottom, left, right = box
    if not (bottom > top and right > left):
        raise ValueError(f"keyframes must not give an empty box, got {_shown(box)} in frame {frame}")
    if min(top, left) < -SLACK or max(bottom, right) > 1 + SLACK:
        raise ValueError(
            f"keyframes must keep boxes inside the frame (fractions from 0 to 1), got {_shown(box)} in frame {frame}"
        )


def _shown(box: Sequence[float]) -> str:
    return "top {:.3g}, bottom {:.3g}, left {:.3g}, right {:.3g}".format(*box)


def picture(
    video: Float[Tensor, "frames channels height width"],
    trajectory: Trajectory,
    path: str | Path | None = None,
    *,
    zoom: int = 1,
) -> Image:
    """The frames of a video in [-1, 1], side by side, with each frame's box drawn over it; saved if ``path`` is given.

    One channel is shown as grey, three are red, green and blue. ``zoom`` enlarges every pixel.

    Raises ``ValueError`` if the video is not of the trajectory's frames or not of one or three channels.
    """
    from PIL import Image, ImageDraw

    if video.dim() != 4 or video.shape[1] not in (1, 3) or len(video) != trajectory.frames:
        raise ValueError(
            f"video must be (frames, 1 or 3, height, width) of {trajectory.frames} frames, got {tuple(video.shape)}"
        )
    pixels = ((video.detach().float().clamp(-1, 1).cpu() + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels.expand(-1, 3, -1, -1).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    frames, _, height, width = pixels.shape
    sheet = Image.fromarray(pixels.permute(2, 0, 3, 1).reshape(height, frames * width, 3).contiguous().numpy())
    pen = ImageDraw.Draw(sheet)
    for frame, (top, bottom, left, right) in enumerate(trajectory.path().tolist()):
        start = frame * width
        corners = [start + left * width, top * height, start + right * width - 1, bottom * height - 1]
        pen.rectangle([round(corner) for corner in corners], outline=(127, 255, 127))
    if path is not None:
        sheet.save(path)
    return sheet
