"""Speed of the layer beside four separate projections, and of the rate scan beside a loop over rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.lab.bench import Case
from everyformer.papers.icl_gd.construct import best_rate, gd_weights
from everyformer.papers.icl_gd.data import regression_tasks
from everyformer.papers.icl_gd.model import InContextTransformer


class FourProjections(nn.Module):
    """The equations as they stand: queries, keys, values, a map of scores, and a projection, for every token and layer."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.layers = layers
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, dim) to predictions (batch, 1)."""
        for _ in range(self.layers):
            context = tokens[:, :-1]
            scores = self.query(tokens) @ self.key(context).mT
            tokens = tokens + self.out(scores @ self.value(context))
        return -tokens[:, -1, -1:]


def training_step(model: nn.Module, tokens: Tensor, target: Tensor, fused: bool) -> Callable[[], None]:
    """One step of AdamW on the squared error."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)

    def step() -> None:
        optimiser.zero_grad()
        F.mse_loss(model(tokens), target).backward()
        optimiser.step()

    return step


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Training steps at the authors' size, a long context, and the scan of 250 step sizes."""
    for layers in (1, 2):
        tokens, target = (part.to(device) for part in regression_tasks(256 if quick else 2048))
        ours, peer = InContextTransformer(11, layers).to(device), FourProjections(11, layers).to(device)
        yield Case(
            f"training_step_{layers}_layers",
            training_step(ours, tokens, target, fused=True),
            {"four projections": training_step(peer, tokens, target, fused=False)},
            2.0,
            f"{layers} tied layers, width 11, 10 points, batch {len(tokens)}",
        )
    context = 200 if quick else 1000
    tokens, target = (part.to(device) for part in regression_tasks(8, context=context))
    ours, peer = InContextTransformer(11, 2).to(device), FourProjections(11, 2).to(device)
    yield Case(
        "long_context",
        training_step(ours, tokens, target, fused=True),
        {"four projections": training_step(peer, tokens, target, fused=False)},
        2.0,
        f"two tied layers, width 11, {context} points, batch 8",
    )
    tokens, target = (part.to(device) for part in regression_tasks(200 if quick else 2000))

    def loop() -> None:
        with torch.no_grad():
            for rate in torch.arange(0.001, 25, 0.1).tolist():
                F.mse_loss(gd_weights(10, 1, 10, rate, steps=2).to(device)(tokens), target)

    yield Case(
        "rate_scan",
        lambda: best_rate(tokens, target, steps=2),
        {"a layer per rate": loop},
        2.0,
        f"250 rates, two steps, {len(tokens)} tasks, width 11",
    )
