"""Speed of SReT at 224 pixels beside itself unsliced, beside timm's networks of about equal cost, and compiled.

The authors' own code can be timed too: ``everyformer bench sret --peer <file>``.
"""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch

from everyformer.lab.bench import Case
from everyformer.lab.images import inference, training_step
from everyformer.papers.sret.model import create

# timm's nearest in multiply-adds: 1.1G beside 1.2G and 0.6G, 4.2G beside 4.6G and 2.9G.
PEERS = {"sret_t": ("deit_tiny_patch16_224", "pit_ti_224"), "sret_s": ("deit_small_patch16_224", "pit_s_224")}
# The first peer is the unsliced network: the goal is the ratio of the multiply-adds.
TARGETS = {"sret_t": 1.23, "sret_s": 1.12}


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Forward, forward and backward, and forward compiled, in fp32; ``quick`` times the forward pass of SReT_T alone."""
    pictures = torch.randn(4 if quick else 16, 3, 224, 224, device=device)
    note = f"batch {len(pictures)}, 224 pixels, fp32"
    for name in ("sret_t",) if quick else PEERS:
        for kind, make in (("forward", inference), ("training", training_step)):
            peers = {f"{name}_unsliced": make(create(f"{name}_unsliced"), pictures)}
            peers |= {peer: make(timm.create_model(peer), pictures) for peer in PEERS[name]}
            yield Case(f"{name}, {kind}", make(create(name), pictures), peers, TARGETS[name], note)
            if quick:
                return
        compiled = inference(create(name), pictures, compiled=True)
        yield Case(f"{name}, compiled", compiled, {"eager": inference(create(name), pictures)}, 1.0, note)
