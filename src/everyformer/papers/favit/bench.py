"""Throughput beside timm's Swin-T and PVTv2-B2 at 224 pixels, eager and compiled, and one attention at many sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import Tensor

import everyformer.papers.favit.model  # noqa: F401 - registers the variants
from everyformer.lab.bench import Case
from everyformer.papers.favit.claim import SWIN, attention

PEERS = {"timm Swin-T": SWIN, "timm PVTv2-B2": "pvt_v2_b2"}


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Inference in float32; ``quick`` takes one picture and leaves the compiled networks and large maps out."""
    batch = 1 if quick else 4
    pictures = torch.randn(batch, 3, 224, 224, device=device)
    for compiled in (False,) if quick else (False, True):
        how = "compiled" if compiled else "eager"
        for variant in ("favit_b1", "favit_b2"):
            peers = {label: network(name, pictures, compiled) for label, name in PEERS.items()}
            ours = network(variant, pictures, compiled)
            yield Case(f"{variant}, batch {batch}, {how}", ours, peers, 1.0, "forward pass, float32, 224 pixels")
    for size in (224,) if quick else (224, 512, 1024):
        # The second stage's map: global attention over the first one's takes a minute at 1024 pixels.
        layers = attention(1)
        x = torch.randn(1, size // 8, size // 8, 128, device=device)
        calls = {name: functools.partial(forward, layer.eval().to(device), x) for name, layer in layers.items()}
        ours = calls.pop("FaSA")
        peers = {"global attention": calls["global"], "windows of 7": calls["windows"]}
        yield Case(f"attention of stage 2, {size} pixels", ours, peers, None, "forward pass, float32")


def network(name: str, pictures: Tensor, compiled: bool) -> Callable[[], Tensor]:
    """A forward pass of a network of timm's registry with random weights."""
    model: Any = timm.create_model(name).eval().to(pictures.device)
    return functools.partial(forward, torch.compile(model) if compiled else model, pictures)


def forward(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A forward pass without gradients."""
    with torch.inference_mode():
        return model(x)
