"""A trajectory control at work: it counts the sampling steps and decides what holds in each pass of the transformer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from everyformer.papers.ditraj import method
from everyformer.parts.video_dit import Grid

if TYPE_CHECKING:
    from everyformer.papers.ditraj.control import TrajectoryControl


@dataclasses.dataclass
class Pass:
    """What holds while the transformer runs once: boxes for its positions, and masks."""

    boxes: Tensor | None = None
    self_mask: Tensor | None = None
    cross_mask: Tensor | None = None


class Steering:
    """A control at work: it counts the steps and decides what holds in each pass."""

    def __init__(self, control: TrajectoryControl) -> None:
        self.control = control
        self.now = Pass()
        self.guided = False
        self._prompts: tuple[Tensor, Tensor] | None = None
        self._unconditional = False
        self._step, self._time = 0, float("-inf")
        self._grid: Grid | None = None

    @contextlib.contextmanager
    def unconditional(self) -> Iterator[None]:
        """Passes inside are the unconditional ones of guidance: they keep their own text, and see all of it."""
        before, self._unconditional = self._unconditional, True
        try:
            yield
        finally:
            self._unconditional = before

    def embed(self, encode: Callable[[Any], Tensor | None]) -> bool:
        """Keep the two prompts' embeddings, texts by ``encode``; ``False`` if it gave none."""
        background, foreground = (
            prompt if isinstance(prompt, Tensor) else encode(prompt)
            for prompt in (self.control.background_prompt, self.control.foreground_prompt)
        )
        if background is None or foreground is None:
            return False
        self._prompts = (_batched(background), _batched(foreground))
        return True

    def start(self, grid: Grid, timestep: Any, device: torch.device) -> None:
        """Begin a pass over a grid of tokens at a timestep."""
        time = float(torch.as_tensor(timestep).max())
        if time != self._time:
            self._step = self._step + 1 if time < self._time else 0
            self._time = time
        if grid != self._grid:
            self._grid, self._boxes = grid, self.control.boxes.tokens(grid)
            self.inside = method.foreground(self._boxes, grid).to(device)
            mask = method.self_mask(self._boxes, grid, self.control.self_mask, trim=self.control.trim)
            self._mask = None if mask is None else mask.to(device)
        moving = self._step < self.control.rope_steps
        masking = moving if self.control.self_mask == "redundant" else self._step < self.control.steps
        self.now = Pass(boxes=self._boxes if moving else None, self_mask=self._mask if masking else None)

    def prompts(self, rows: int, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Background and foreground prompts for so many videos, or ``None`` where the whole prompt holds."""
        if self._prompts is None or self._unconditional or self._step >= self.control.steps or rows == 0:
            return None
        for name, prompt in zip(("background_prompt", "foreground_prompt"), self._prompts, strict=True):
            if prompt.shape[-1] != like.shape[-1] or rows % len(prompt):
                raise ValueError(
                    f"{name} must be (batch, words, {like.shape[-1]}) with a batch that divides {rows}, "
                    f"got {tuple(prompt.shape)}"
                )
        background, foreground = (prompt.to(like).repeat_interleave(rows // len(prompt), 0) for prompt in self._prompts)
        return background, foreground

    def separate(self, words: Tensor) -> Tensor:
        """The words that cross-attention sees in this pass; sets its mask."""
        both = self.prompts(len(words), words)
        if both is None:
            return words
        self.now.cross_mask = method.cross_mask(self.inside, both[0].shape[1], both[1].shape[1])[None, None]
        return torch.cat(both, dim=1)

    def moved(self, positions: Tensor) -> Tensor:
        """Positions of this pass, a row per token."""
        if self.now.boxes is None or self._grid is None:
            return positions
        return method.std_rope(positions, self.now.boxes, self._grid, trim=self.control.trim)


def _batched(prompt: Tensor) -> Tensor:
    return prompt if prompt.dim() == 3 else prompt[None]
