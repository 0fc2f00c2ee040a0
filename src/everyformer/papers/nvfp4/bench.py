"""NVFP4 beside its peers: the quantiser beside torchao's, and a training step beside FP8 and bf16, both emulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from everyformer.lab import text
from everyformer.lab.bench import Case
from everyformer.lab.measure import peak_extra_bytes
from everyformer.ops.nvfp4 import quantise
from everyformer.papers.nvfp4.claim import METHODS, torchao


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Quantising float32 and bfloat16, and a training step of a small GPT."""
    side = 512 if quick else 4096
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(side, side, device=device, dtype=dtype)
        yield Case(
            f"quantising {dtype}".replace("torch.", ""),
            lambda x=x: quantise(x),  # type: ignore[misc]
            {"torchao": torchao(x)},
            1.0,
            f"{side} x {side}, round to nearest, one pass for the tensor's scale included",
        )
    steps = {}
    for name, treat in METHODS.items():
        torch.manual_seed(0)
        width, layers = (64, 2) if quick else (256, 4)
        steps[name] = training(treat(text.build("gpt", width=width, layers=layers)).to(device), device)
    peaks = {name: peak_extra_bytes(step, device) / 1e6 for name, step in steps.items()}
    yield Case(
        "training step",
        steps.pop("NVFP4"),
        steps,
        None,
        "emulated, so that it costs more time, not less; peak memory in MB beyond the model: "
        + ", ".join(f"{name} {peak:.1f}" for name, peak in peaks.items()),
    )


def training(model: nn.Module, device: str) -> Callable[[], None]:
    """Loss and gradients on one batch, in bfloat16 but for the products of treated layers."""
    pieces = torch.randint(text.BYTES, (8, text.LENGTH + 1), device=device)

    def run() -> None:
        model.zero_grad()
        with torch.autocast(pieces.device.type, torch.bfloat16):
            loss = text.loss(model, pieces)
        loss.backward()

    return run
