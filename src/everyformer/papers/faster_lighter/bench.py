"""Training steps with less memory beside autograd as it is: reversible blocks, checkpointed ones, batches in parts."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from everyformer.lab.bench import Case
from everyformer.lab.measure import gradient_pass, peak_extra_bytes
from everyformer.papers.faster_lighter.claim import Plain, blocks
from everyformer.papers.faster_lighter.method import (
    Reversible,
    ReversibleSequence,
    backward_in_parts,
    checkpoint_layers,
)


def cases(quick: bool, device: str) -> Iterator[Case]:
    """A training step of 12 blocks; less memory costs time, so that ratios are below one."""
    batch, tokens, dim = (4, 32, 16) if quick else (4, 512, 128)
    halves = torch.randn(2, batch, tokens, dim, device=device)
    models = {name: _model(name, dim).to(device) for name in ("reversible", "autograd", "checkpointed")}
    steps = {name: gradient_pass(model, functools.partial(_loss, model, *halves)) for name, model in models.items()}
    plain = models["autograd"]

    def in_parts() -> None:
        plain.zero_grad(set_to_none=True)
        backward_in_parts(lambda left, right: _loss(plain, left, right), halves[0], halves[1], 1)

    peaks = {name: peak_extra_bytes(step, device) / 1e6 for name, step in {**steps, "in parts": in_parts}.items()}
    note = "peak memory in MB beyond the model: " + ", ".join(f"{name} {peak:.1f}" for name, peak in peaks.items())
    autograd = steps["autograd"]
    yield Case(
        "reversible blocks",
        steps["reversible"],
        {"autograd": autograd, "checkpointed": steps["checkpointed"]},
        None,
        note,
    )
    yield Case("a batch one sample at a time", in_parts, {"autograd": autograd}, None, note)


def _model(name: str, dim: int) -> nn.Module:
    torch.manual_seed(0)
    made = blocks(12, dim, heads=4)
    model: nn.Module = ReversibleSequence(made) if name == "reversible" else Plain(made)
    if name == "checkpointed":
        checkpoint_layers(model, Reversible)
    return model


def _loss(model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
    left, right = model(left, right)
    return left.square().mean() + right.square().mean()
