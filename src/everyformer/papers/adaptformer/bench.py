"""Training steps and forward passes of a ViT with AdaptFormer, beside other tuners and full fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch

from everyformer.lab.bench import Case
from everyformer.lab.images import inference
from everyformer.papers.adaptformer.claim import FULL, LINEAR, training_step, tuned

PEERS = {"full fine-tuning": FULL, "LoRA of PEFT": "LoRA", "linear probing": LINEAR, "VPT": "VPT"}


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Float32 at 224 pixels; ``quick`` takes ViT-Ti and one picture."""
    name, batch = ("vit_tiny_patch16_224", 1) if quick else ("vit_small_patch16_224", 8)
    network = timm.create_model(name, num_classes=10).to(device)
    pictures = torch.randn(batch, 3, 224, 224, device=device)
    labels = torch.arange(batch, device=device) % 10
    models = {method: tuned(method, network) for method in ("AdaptFormer-64", *PEERS.values())}
    note = f"{name}, batch {batch}, float32, 224 pixels"
    steps = {method: training_step(model, pictures, labels) for method, model in models.items()}
    yield Case(
        "training step", steps["AdaptFormer-64"], {label: steps[method] for label, method in PEERS.items()}, 1.2, note
    )
    yield Case(
        "forward pass",
        inference(models["AdaptFormer-64"], pictures),
        {label: inference(models[method], pictures) for label, method in PEERS.items() if method != LINEAR},
        1.0,
        note,
    )
