"""Throughput of FMViT with branches, folded, compiled and in ONNX Runtime, beside timm's networks of like multiply-adds."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import reparameterize_model
from torch import Tensor

from everyformer.lab.bench import Case
from everyformer.lab.images import inference
from everyformer.papers.fmvit.claim import lived_in
from everyformer.papers.fmvit.export import to_onnx

# Networks of timm that fold, near in multiply-adds at 224 pixels: 0.8 to 1.1G beside 0.8G, 2.9 to 4.5G beside 4.2G.
PEERS = {
    "fmvit_s": ("mobileone_s1", "fastvit_t12", "repvit_m0_9"),
    "fmvit_b": ("mobileone_s4", "fastvit_sa24", "repvit_m2_3"),
}


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Ways to run one network, then folded networks side by side; ``quick`` takes FMViT-S, 64 pixels, nothing compiled."""
    size, batch = (64, 2) if quick else (224, 8)
    x = torch.randn(batch, 3, size, size, device=device)
    for name in ("fmvit_s",) if quick else PEERS:
        unfolded = lived_in(timm.create_model(name).to(device), size)
        folded = reparameterize_model(unfolded)
        ways: dict[str, Callable[[], Any]] = {"with branches": inference(unfolded, x)}
        if not quick:
            ways["folded, torch.compile"] = inference(folded, x, compiled=True)
        if not quick and device == "cpu" and importlib.util.find_spec("onnxruntime"):
            with tempfile.TemporaryDirectory() as folder:
                file = to_onnx(folded, Path(folder) / "model.onnx", size)
                ways["folded, ONNX Runtime"] = onnx_runtime(file, x)
        note = f"batch {batch}, {size} pixels, float32"
        yield Case(f"{name}, folded, eager", inference(folded, x), ways, 1.3, note)
        peers = {f"timm {peer}": inference(reparameterize_model(timm.create_model(peer)), x) for peer in PEERS[name]}
        yield Case(f"{name} beside folded networks, eager", inference(folded, x), peers, 1.0, note)


def onnx_runtime(file: Path, x: Tensor) -> Callable[[], Any]:
    """A forward pass by ONNX Runtime with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return lambda: session.run(["logits"], feed)[0]
