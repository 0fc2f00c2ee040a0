"""What trajectory control costs: one pass of a transformer of Wan's make and of our VideoDiT, with and without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from everyformer.lab.bench import Case
from everyformer.papers.ditraj.boxes import Trajectory
from everyformer.papers.ditraj.control import TrajectoryControl
from everyformer.parts.video_dit import VideoDiT

MOVING = [(0, 0.25, 0.75, 0.0, 0.5), (20, 0.25, 0.75, 0.5, 1.0)]
PHASES: dict[str, dict[str, Any]] = {
    "positions, masks and two prompts": {},
    "two prompts": {"rope_steps": 0},
    "a step after the last": {"steps": 0, "rope_steps": 0},
}


def controlled(model: Any, call: Callable[[], Tensor], control: TrajectoryControl) -> Callable[[], Tensor]:
    """A pass as the first step of a video under control, the control put on and taken off included."""

    def run() -> Tensor:
        with torch.no_grad(), control.on(model):
            return call()

    return run


def plain(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A pass without control."""

    def run() -> Tensor:
        with torch.no_grad():
            return call()

    return run


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Every phase of control; the target is to be at most a tenth slower."""
    from diffusers import WanTransformer3DModel

    frames, side, words, dim = (5, 8, 16, 64) if quick else (11, 14, 64, 384)
    wan: Any = WanTransformer3DModel(
        num_attention_heads=dim // 32, attention_head_dim=32, in_channels=4, out_channels=4, text_dim=32, freq_dim=32,
        ffn_dim=4 * dim, num_layers=2,
    )  # fmt: skip
    wan.to(device)
    small = VideoDiT(patch=2, channels=4, text_dim=32, dim=dim, depth=2, heads=dim // 32).to(device)
    latents = torch.randn(1, 4, frames, 2 * side, 2 * side, device=device)
    time, text = torch.tensor([900.0], device=device), torch.randn(1, words, 32, device=device)
    calls: dict[str, tuple[Any, Callable[[], Tensor]]] = {
        "Wan": (wan, lambda: wan(latents, time, text, return_dict=False)[0]),
        "VideoDiT": (small, lambda: small(latents.transpose(1, 2), time, text)),
    }
    for name, (model, call) in calls.items():
        for phase, steps in PHASES.items():
            control = TrajectoryControl(Trajectory(MOVING, frames=21), text[0], text[0], **steps)
            yield Case(
                f"a pass of {name}, {frames * side**2} tokens: {phase}",
                controlled(model, call, control),
                {"no control": plain(call)},
                0.9,
                "two prompts are twice the words; masks keep attention from its fastest kernels on a GPU",
            )
