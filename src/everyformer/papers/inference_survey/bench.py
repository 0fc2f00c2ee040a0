"""Latency of compressed models beside the model as it was, in one run."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from everyformer import compressors
from everyformer.lab import text
from everyformer.lab.bench import Case
from everyformer.lab.compress_bench import forward
from everyformer.lab.compress_subjects import SIDE
from everyformer.lab.compress_subjects import vit as digits_vit


def cases(quick: bool, device: str) -> Iterator[Case]:
    """A LLaMA of bytes under each method that can change its speed, and a vision transformer whose tokens merge."""
    torch.manual_seed(0)
    width, layers = (64, 2) if quick else (256, 8)
    llama = text.build("llama", width=width, layers=layers, heads=4).to(device)
    pieces = torch.randint(text.BYTES, (4, text.LENGTH), device=device)
    methods: dict[str, tuple[compressors.Step, ...]] = {
        "half of the heads": (("heads", {"ratio": 0.5}),),
        "half of the blocks": (("blocks", {"ratio": 0.5}),),
        "factors with half of the weights": (("low_rank", {"ratio": 0.5}),),
        "half of the weights": ("magnitude",),
        "int8 weights": ("int8",),
        "int8 weights and inputs": ("int8_dynamic",),
        "NVFP4 weights": ("nvfp4",),
    }
    for name, steps in methods.items():
        made = compressors.compose(copy.deepcopy(llama), steps)
        yield Case(
            name, forward(made, pieces), {"as built": forward(llama, pieces)},
            note=f"LLaMA, {layers} blocks of {width}, 4 x {text.LENGTH} bytes",
        )  # fmt: skip
    vit = digits_vit(width=32 if quick else 192, depth=2 if quick else 6).to(device)
    pictures = torch.randn(2 if quick else 32, 3, SIDE, SIDE, device=device)
    merged = compressors.apply(copy.deepcopy(vit), "merging", per_block=8)
    yield Case(
        "merged tokens", forward(merged, pictures),
        {"as built": forward(vit, pictures)}, note="8 pairs of 101 tokens in each block",
    )  # fmt: skip
