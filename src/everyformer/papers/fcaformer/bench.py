"""Throughput beside timm's ConvNeXt-T and Swin-T at 224 pixels, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import Tensor

import everyformer.papers.fcaformer.model  # noqa: F401 - registers the variants
from everyformer.lab.bench import Case

PEERS = {"timm ConvNeXt-T": "convnext_tiny", "timm Swin-T": "swin_tiny_patch4_window7_224"}


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Inference in float32; ``quick`` takes one picture and leaves the compiled networks out."""
    batch = 1 if quick else 8
    pictures = torch.randn(batch, 3, 224, 224, device=device)
    for compiled in (False,) if quick else (False, True):
        how = "compiled" if compiled else "eager"
        for variant in ("fcaformer_l1", "fcaformer_l2"):
            peers = {label: forward(name, pictures, compiled) for label, name in PEERS.items()}
            ours = forward(variant, pictures, compiled)
            yield Case(f"{variant}, batch {batch}, {how}", ours, peers, 1.0, "forward pass, float32, 224 pixels")


def forward(name: str, pictures: Tensor, compiled: bool) -> Callable[[], Tensor]:
    """A forward pass of a network of timm's registry with random weights."""
    model: Any = timm.create_model(name).eval().to(pictures.device)
    call = torch.compile(model) if compiled else model

    def run() -> Tensor:
        with torch.inference_mode():
            return call(pictures)  # type: ignore[no-any-return]

    return run
