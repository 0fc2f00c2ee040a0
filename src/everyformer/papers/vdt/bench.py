"""A training step and a sampling step of VDT, eager beside compiled, and beside attention over all tokens at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from everyformer.lab.bench import Case
from everyformer.lab.measure import forward_pass, gradient_pass
from everyformer.papers.vdt.model import VDT, vdt_s_2


class Joint(nn.Module):
    """The same network with one attention over all tokens of a video in place of the two."""

    def __init__(self, network: VDT) -> None:
        super().__init__()
        self.network = network
        for block in network.blocks:
            inner: Callable[[Tensor], Tensor] = block.attention  # type: ignore[union-attr, assignment]
            block.attention = _Whole(inner, network.frames)  # type: ignore[union-attr, assignment]

    def forward(self, video: Tensor, timesteps: Tensor) -> Tensor:
        return self.network(video, timesteps)  # type: ignore[no-any-return]


class _Whole(nn.Module):
    def __init__(self, inner: Callable[[Tensor], Tensor], frames: int) -> None:
        super().__init__()
        self.inner, self.frames = inner, frames

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.unflatten(0, (-1, self.frames)).flatten(1, 2)).view_as(x)


def training_step(network: Callable[..., Tensor], module: nn.Module, *inputs: Tensor) -> Callable[[], None]:
    """Loss and gradients of a network that may be compiled."""
    return gradient_pass(module, lambda: network(*inputs).square().mean())


def cases(quick: bool, device: str) -> Iterator[Case]:
    """VDT-S/2 with 16 frames of 32 x 32 latents; ``quick`` takes two blocks and frames of 16 x 16."""
    sizes = {"depth": 2, "image_size": 16} if quick else {}
    with torch.device(device):
        ours, joint = vdt_s_2(classes=1, **sizes).eval(), Joint(vdt_s_2(classes=1, temporal=False, **sizes).eval())
        side = ours.image_size
        video, times = torch.randn(1, 16, 4, side, side), torch.full((1,), 500.0)
    compiled = torch.compile(ours)
    note = f"VDT-S/2, {len(ours.blocks)} blocks, one video of 16 latents of {side} x {side}, float32"
    yield Case(
        "training step",
        training_step(ours, ours, video, times),
        {
            "compiled": training_step(compiled, ours, video, times),
            "attention over all tokens at once": training_step(joint, joint, video, times),
        },
        0.8,
        note,
    )
    yield Case(
        "sampling step",
        forward_pass(ours, video, times),
        {
            "compiled": forward_pass(compiled, video, times),
            "attention over all tokens at once": forward_pass(joint, video, times),
        },
        0.8,
        note,
    )
