"""The pair model with fused attention beside attention step by step, and all views in one pass beside all pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from everyformer.lab.bench import Case
from everyformer.lab.measure import forward_pass
from everyformer.papers.feedforward_3d.model import PairModel, dust3r_linear, multi_tiny, pair_tiny


def unfused(network: Callable[..., object], *images: Tensor) -> Callable[[], object]:
    """A pass without gradients, with scores and softmax written out."""

    def run() -> object:
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
            return network(*images)

    return run


def all_pairs(model: PairModel, views: Tensor) -> Callable[[], object]:
    """Every ordered pair of one scene's views, each view encoded once."""
    count = len(views)
    edges = torch.tensor([(a, b) for a in range(count) for b in range(count) if a != b], device=views.device).T

    def run() -> object:
        with torch.inference_mode():
            tokens, grid = model.encode(views), model.grid(views)
            return model.decode(tokens[edges[0]], tokens[edges[1]], grid, grid)

    return run


def cases(quick: bool, device: str) -> Iterator[Case]:
    """DUSt3R's widths with six and three blocks (``quick``: the tiny pair model), then scenes of 2, 4 and 8 views."""
    with torch.device(device):
        pair = pair_tiny().eval() if quick else dust3r_linear(depth=6, decoder_depth=3).eval()
        side = 64 if quick else 224
        images = torch.rand(1, 3, side, side), torch.rand(1, 3, side, side)
    note = f"a pair of {side} x {side}, {len(pair.encoder)} + 2 x {len(pair.decoder1)} blocks, float32"
    yield Case(
        "pair",
        forward_pass(pair, *images),
        {"attention step by step": unfused(pair, *images), "compiled": forward_pass(torch.compile(pair), *images)},
        1.0,
        note,
    )
    with torch.device(device):
        small, multi = pair_tiny().eval(), multi_tiny().eval()
    for count in (2, 4) if quick else (2, 4, 8):
        views = torch.rand(count, 3, 64, 64, device=device)
        yield Case(
            f"{count} views",
            forward_pass(multi, views[None]),
            {f"{count * (count - 1)} pairs": all_pairs(small, views)},
            note=f"the tiny models, {count} views of 64 x 64, forward only: no alignment of the pairs",
        )
