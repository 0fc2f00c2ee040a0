"""Speed: networks beside timm's of about equal multiply-adds, the super-network's step beside a plain one, extraction.

The authors' code can be timed too: ``everyformer bench vit_resnas --peer <file>``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.lab.bench import Case
from everyformer.lab.images import inference
from everyformer.papers.vit_resnas.claim import SMALL_SPACE
from everyformer.papers.vit_resnas.model import VARIANTS, Block, ViTResNAS
from everyformer.papers.vit_resnas.supernet import SPACES, SuperNet

# 1.8G and 4.5G multiply-adds, beside 1.3G, and 4.6G and 4.5G.
PEERS = {
    "vit_resnas_tiny": ("deit_tiny_patch16_224",),
    "vit_resnas_medium": ("deit_small_patch16_224", "swin_tiny_patch4_window7_224"),
}


def cases(quick: bool, device: str) -> Iterator[Case]:
    """In float32; ``quick`` leaves the published networks out."""
    batch, examples = (16, 4) if quick else (64, 16)
    supernet = SuperNet(SMALL_SPACE, examples, warm_up=0).to(device).train()
    pictures = torch.randn(batch, 3, 32, 32, device=device)
    yield Case(
        f"super-network step, {batch // examples} architectures",
        step(supernet, supernet, pictures),
        {"plain step of the largest network": step(supernet, supernet.network, pictures)},
        1 / 1.15,
        f"forward and backward, batch {batch}, 8 x 8 and 4 x 4 patches",
    )
    published = SuperNet(SPACES["tiny"]).to(device)
    smallest = published.space.smallest

    def copied() -> ViTResNAS:
        network = ViTResNAS(smallest).to(device)
        network.load_state_dict(state)
        return network

    state = {name: tensor.clone() for name, tensor in published.extract(smallest).state_dict().items()}
    yield Case(
        "extraction of a sub-network",
        lambda: published.extract(smallest),
        {"built and copied": copied},
        1.0,
        "smallest network of the published tiny space",
    )
    tokens = torch.randn(2 if quick else 16, 257, 192, device=device)
    block = Block(192, 3, 64, 768).to(device).eval()
    reference = timm.models.vision_transformer.Block(192, 3, qkv_bias=True).to(device).eval()
    yield Case("block, 257 tokens", inference(block, tokens), {"timm's block": inference(reference, tokens)}, 1.0)
    for name, others in () if quick else PEERS.items():
        pictures = torch.randn(8, 3, 224, 224, device=device)
        note = "batch 8, 224 pixels"
        eager = inference(ViTResNAS(stages=VARIANTS[name]), pictures)
        peers = {other: inference(timm.create_model(other), pictures) for other in others}
        yield Case(f"{name}, forward", eager, peers, 1.0, note)
        compiled = inference(ViTResNAS(stages=VARIANTS[name]), pictures, compiled=True)
        yield Case(f"{name}, compiled", compiled, {"eager": eager}, 1.0, note)


def step(owner: nn.Module, model: nn.Module, pictures: Tensor) -> Callable[[], None]:
    """Forward and backward; ``owner`` holds the gradients."""
    labels = torch.zeros(len(pictures), dtype=torch.long, device=pictures.device)

    def run() -> None:
        owner.zero_grad()
        F.cross_entropy(model(pictures), labels).backward()

    return run
