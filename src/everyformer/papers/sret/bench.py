"""Speed of SReT at 224 pixels beside itself unsliced and beside timm's networks of about equal multiply-adds.

The authors' own code can be timed too: ``everyformer bench sret --peer <file>``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import timm
import torch
import torch.nn.functional as F
from torch import nn

from everyformer.lab.bench import Case
from everyformer.papers.sret.model import create

# timm's nearest in multiply-adds: 1.1G beside 1.2G and 0.6G, 4.2G beside 4.6G and 2.9G.
PEERS = {"sret_t": ("deit_tiny_patch16_224", "pit_ti_224"), "sret_s": ("deit_small_patch16_224", "pit_s_224")}
# The first peer is the unsliced network: the goal is the ratio of the multiply-adds.
TARGETS = {"sret_t": 1.23, "sret_s": 1.12}


def inference(model: nn.Module, pictures: torch.Tensor) -> Callable[[], torch.Tensor]:
    """One forward pass in evaluation."""
    model.eval().to(pictures.device, pictures.dtype)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return model(pictures)  # type: ignore[no-any-return]

    return run


def training(model: nn.Module, pictures: torch.Tensor) -> Callable[[], None]:
    """One forward and backward pass."""
    model.train().to(pictures.device, pictures.dtype)
    labels = torch.zeros(len(pictures), dtype=torch.long, device=pictures.device)

    def run() -> None:
        model.zero_grad()
        F.cross_entropy(model(pictures), labels).backward()

    return run


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Forward, and forward and backward, in fp32; ``quick`` times the forward pass of SReT_T alone."""
    pictures = torch.randn(4 if quick else 16, 3, 224, 224, device=device)
    for name in ("sret_t",) if quick else PEERS:
        for kind, make in (("forward", inference),) if quick else (("forward", inference), ("training", training)):
            networks: dict[str, nn.Module] = {f"{name}_unsliced": create(f"{name}_unsliced")}
            networks |= {peer: timm.create_model(peer) for peer in PEERS[name]}
            yield Case(
                f"{name}, {kind}",
                make(create(name), pictures),
                {peer: make(network, pictures) for peer, network in networks.items()},
                TARGETS[name],
                f"batch {len(pictures)}, 224 pixels, fp32",
            )
