"""Throughput beside timm's ConvNeXt-T and Swin-T at 224 pixels, and compiled beside eager."""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch

import everyformer.papers.fcaformer.model  # noqa: F401 - registers the variants
from everyformer.lab.bench import Case
from everyformer.lab.images import inference

PEERS = {"timm ConvNeXt-T": "convnext_tiny", "timm Swin-T": "swin_tiny_patch4_window7_224"}


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Inference in float32; ``quick`` takes one picture and leaves the compiled networks out."""
    pictures = torch.randn(1 if quick else 8, 3, 224, 224, device=device)
    note = f"forward pass of {len(pictures)} pictures of 224 pixels, float32"
    for variant in ("fcaformer_l1", "fcaformer_l2"):
        peers = {label: inference(timm.create_model(name), pictures) for label, name in PEERS.items()}
        eager = inference(timm.create_model(variant), pictures)
        yield Case(variant, eager, peers, 1.0, note)
        if not quick:
            compiled = inference(timm.create_model(variant), pictures, compiled=True)
            yield Case(f"{variant}, compiled", compiled, {"eager": eager}, 1.0, note)
