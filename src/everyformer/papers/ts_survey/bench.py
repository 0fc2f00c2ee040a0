"""Speed of each forecaster, forward and training step, beside the vanilla transformer of the same sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from everyformer.lab.bench import Case
from everyformer.lab.measure import forward_pass
from everyformer.papers.ts_survey import harness
from everyformer.papers.ts_survey.harness import Budget, Cell
from everyformer.papers.ts_survey.model import MODELS

BUDGET = Budget(batch=32, dim=64, ff=128, heads=4, dropout=0.0)
LENGTHS = (96, 720)
VARIATES, MARKS = 7, 4


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Look-backs of 96 and, unless ``quick``, 720; horizon 96, two layers."""
    for lookback in LENGTHS[: 1 if quick else None]:
        generator = torch.Generator().manual_seed(0)
        walk = torch.randn(BUDGET.batch, lookback + 96, VARIATES, generator=generator).cumsum(1).to(device)
        marks = torch.rand(BUDGET.batch, lookback + 96, MARKS, generator=generator).sub(0.5).to(device)
        batch = (walk[:, :lookback], walk[:, lookback:], marks[:, :lookback], marks[:, lookback:])
        for kind, timed in (("forward", forward), ("training_step", training_step)):
            vanilla = timed(Cell("vanilla", lookback, 96).build(BUDGET, VARIATES, MARKS).to(device), batch)
            for name in MODELS[1:]:
                ours = timed(Cell(name, lookback, 96).build(BUDGET, VARIATES, MARKS).to(device), batch)
                note = f"7 variates, dim 64, 2 layers, batch 32, {lookback} to 96 steps"
                yield Case(f"{name}_{kind}_{lookback}", ours, {"vanilla transformer": vanilla}, None, note)


def forward(model: nn.Module, batch: Any) -> Callable[[], None]:
    """The forecast of a batch, without gradients."""
    return forward_pass(model.eval(), batch[0], batch[2], batch[3])


def training_step(model: nn.Module, batch: Any) -> Callable[[], None]:
    """One step of Adam on the squared error."""
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)

    def run() -> None:
        optimiser.zero_grad()
        harness.loss(model, batch).backward()
        optimiser.step()

    return run
