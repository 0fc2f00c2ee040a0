"""PredFormer beside SimVP of as many parameters, and attention over all tokens beside attention along axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from everyformer.lab.bench import Case
from everyformer.lab.measure import forward_pass
from everyformer.papers.predformer import study
from everyformer.papers.predformer.model import Stage


def training_step(network: nn.Module, video: Tensor) -> Callable[[], object]:
    """Forward and backward pass."""
    return lambda: torch.autograd.grad(network(video).square().mean(), list(network.parameters()))


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Networks of 0.4 million parameters on 32 x 32; and a block at the size of Moving MNIST (``quick``: narrower)."""
    scale, batch = ("smoke", 2) if quick else ("cpu", 16)
    names: tuple[study.Name, ...] = ("SimVP v1", "SimVP v2", "PredFormer with an MLP")  # the target is for the first
    with torch.device(device):
        ours = study.network(scale, "PredFormer")  # type: ignore[arg-type]
        peers: dict[str, nn.Module] = {name: study.network(scale, name) for name in names}  # type: ignore[arg-type]
        video = torch.rand(batch, study.GIVEN, 1, 32, 32)
    note = f"{batch} sequences of ten frames of 32 x 32, as many parameters, float32"
    steps: dict[str, Callable[[], object]] = {name: training_step(peer, video) for name, peer in peers.items()}
    yield Case("training step", training_step(ours, video), steps, 1.5, note)
    passes: dict[str, Callable[[], object]] = {name: forward_pass(peer.eval(), video) for name, peer in peers.items()}
    yield Case("inference", forward_pass(ours.eval(), video), passes, 1.5, note)
    dim, heads = (32, 1) if quick else (256, 8)
    with torch.device(device):
        stage = Stage("T", 1, dim, heads=heads, head_dim=32, hidden=4 * dim).eval()
        tokens = torch.randn(10, 64, dim)
    time, frames = forward_pass(stage, tokens.transpose(0, 1).contiguous()), forward_pass(stage, tokens)
    whole = forward_pass(stage, tokens.flatten(0, 1)[None])
    yield Case(
        "a block over time and one within frames",
        lambda: (time(), frames()),
        {"two blocks over all tokens": lambda: (whole(), whole())},
        1.2,
        f"10 x 64 tokens of width {dim}, float32",
    )
