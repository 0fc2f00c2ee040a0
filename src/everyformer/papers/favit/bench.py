"""Throughput beside timm's Swin-T and PVTv2-B2 at 224 pixels, compiled beside eager, and one attention at many sizes."""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch

import everyformer.papers.favit.model  # noqa: F401 - registers the variants
from everyformer.lab.bench import Case
from everyformer.lab.images import inference
from everyformer.papers.favit.claim import SWIN, attention

PEERS = {"timm Swin-T": SWIN, "timm PVTv2-B2": "pvt_v2_b2"}


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Inference in float32; ``quick`` takes one picture and leaves the compiled networks and large maps out."""
    pictures = torch.randn(1 if quick else 4, 3, 224, 224, device=device)
    note = f"forward pass of {len(pictures)} pictures of 224 pixels, float32"
    for variant in ("favit_b1", "favit_b2"):
        eager = inference(timm.create_model(variant), pictures)
        peers = {label: inference(timm.create_model(name), pictures) for label, name in PEERS.items()}
        yield Case(variant, eager, peers, 1.0, note)
        if not quick:
            compiled = inference(timm.create_model(variant), pictures, compiled=True)
            yield Case(f"{variant}, compiled", compiled, {"eager": eager}, 1.0, note)
    for size in (224,) if quick else (224, 512, 1024):
        # The second stage's map: global attention over the first one's takes a minute at 1024 pixels.
        layers = attention(1)
        x = torch.randn(1, size // 8, size // 8, 128, device=device)
        calls = {name: inference(layer, x) for name, layer in layers.items()}
        ours = calls.pop("FaSA")
        peers = {"global attention": calls["global"], "windows of 7": calls["windows"]}
        yield Case(f"attention of stage 2, {size} pixels", ours, peers, None, "forward pass, float32")
