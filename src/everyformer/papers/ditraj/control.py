"""Trajectory control of video diffusion transformers that exist already: diffusers' Wan and CogVideoX, and our VideoDiT.

:meth:`TrajectoryControl.on` is a context: inside it a pipeline or a transformer follows the boxes, after it everything is
as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor

from everyformer.papers.ditraj import method
from everyformer.papers.ditraj.boxes import Trajectory
from everyformer.papers.ditraj.integration import attach
from everyformer.papers.ditraj.steering import Steering

Prompt = str | Sequence[str] | Float[Tensor, "*batch words dim"]
"""A text, or one for each video of a batch, or what the text encoder makes of it."""


@dataclasses.dataclass(frozen=True)
class TrajectoryControl:
    """Makes the subject of a video follow boxes, without training (arXiv 2509.21839).

    Args:
        boxes: where the subject is.
        foreground_prompt, background_prompt: what is seen inside and outside the boxes, instead of the whole prompt;
            both or neither. Texts need a pipeline; a bare transformer takes embeddings (words, dim) or
            (batch, words, dim). :func:`~everyformer.papers.ditraj.prompts.separate` makes them with a language model.
        steps: first sampling steps in which the two prompts take the place of the whole one. The authors take 30 of 50.
        rope_steps: first sampling steps in which foreground positions follow the boxes. The authors take 5 of 50.
        self_mask: what self-attention may not see; ``redundant`` goes with ``rope_steps``, ``separate`` with ``steps``
            (see :func:`~everyformer.papers.ditraj.method.self_mask`).
        trim: see :func:`~everyformer.papers.ditraj.method.sources`; 1 does as the authors' code does.

    Raises ``ValueError`` or ``TypeError`` for arguments that cannot be used.
    """

    boxes: Trajectory
    foreground_prompt: Prompt | None = None
    background_prompt: Prompt | None = None
    steps: int = 30
    rope_steps: int = 5
    self_mask: method.SelfMask = "redundant"
    trim: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.boxes, Trajectory):
            raise TypeError(f"boxes must be a Trajectory, got {type(self.boxes).__name__}")
        if (self.foreground_prompt is None) != (self.background_prompt is None):
            raise ValueError("foreground_prompt and background_prompt must be given both or neither, got one of them")
        for name in ("steps", "rope_steps", "trim"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise ValueError(f"{name} must be a whole number, 0 or more, got {getattr(self, name)!r}")
        if self.self_mask not in get_args(method.SelfMask):
            raise ValueError(f"self_mask must be one of {get_args(method.SelfMask)}, got {self.self_mask!r}")

    @contextlib.contextmanager
    def on(self, target: Any) -> Iterator[Steering]:
        """Control ``target``: a WanPipeline, a CogVideoXPipeline, one of their transformers, or a
        :class:`~everyformer.parts.video_dit.VideoDiT`.

        Steps are counted by the timestep: every fall is a step, a rise starts the next video. Classifier-free guidance
        is followed in pipelines; around a bare transformer, call it for the unconditional prediction inside
        :meth:`Steering.unconditional`.

        Raises:
            TypeError: a target that is none of these.
            ValueError: a transformer that cannot be steered (the message says why), one under control already, or
                prompts as texts without a pipeline. When the transformer runs: boxes or prompts that do not fit its input.
        """
        steering = Steering(self)
        with contextlib.ExitStack() as undo:
            attach(target, steering, undo)
            yield steering
