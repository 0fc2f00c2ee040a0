"""Speed of a training step (forward, backward, Adam) at the authors' ETTh1 configuration and at 321 variates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.lab.bench import Case
from everyformer.papers.itransformer.model import Inverted, ITransformer, invert


@dataclasses.dataclass(frozen=True)
class Config:
    """A model and batch of the authors' scripts, look-back and horizon 96 with the four calendar features of hours."""

    variates: int
    dim: int
    layers: int
    batch: int
    lookback: int = 96
    horizon: int = 96
    heads: int = 8
    marks: int = 4

    @property
    def ff(self) -> int:
        """The scripts use the same width for both."""
        return self.dim


CONFIGS = {
    "training_step_etth1": Config(variates=7, dim=256, layers=2, batch=32),
    "training_step_321_variates": Config(variates=321, dim=512, layers=3, batch=16),
}
TARGETS = {"training_step_etth1": 1.0, "training_step_321_variates": 1.2}


def batch_of(config: Config, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """History, calendar features and future of one random batch."""
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(config.batch, config.lookback + config.horizon, config.variates, generator=generator).cumsum(1)
    marks = torch.rand(config.batch, config.lookback, config.marks, generator=generator) - 0.5
    return walk[:, : config.lookback].to(device), marks.to(device), walk[:, config.lookback :].to(device)


def training_step(model: nn.Module, series: Tensor, marks: Tensor, target: Tensor) -> Callable[[], None]:
    """One step of Adam on the squared error of ``model(series, marks)``, torch's default Adam for everybody."""
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        F.mse_loss(model(series, marks), target).backward()
        optimiser.step()

    return step


def cases(quick: bool, device: str) -> Iterator[Case]:
    """The same maths by ours and by ``nn.TransformerEncoder`` (post-norm, GELU), inverted; ``quick`` leaves 321 out."""
    for name, config in CONFIGS.items():
        if quick and config.variates > 100:
            continue
        batch = batch_of(config, device)
        shape: dict[str, Any] = {
            "lookback": config.lookback,
            "horizon": config.horizon,
            "dim": config.dim,
            "marks": config.marks,
        }
        ours = ITransformer(**shape, heads=config.heads, layers=config.layers, ff=config.ff).to(device)
        peer = _torch_encoder(config, shape).to(device)
        note = (
            f"{config.variates} variates, dim {config.dim}, {config.layers} layers, batch {config.batch}, dropout 0.1"
        )
        yield Case(
            name,
            training_step(ours, *batch),
            {"nn.TransformerEncoder": training_step(peer, *batch)},
            TARGETS[name],
            note,
        )


def _torch_encoder(config: Config, shape: dict[str, Any]) -> Inverted:
    def encoder() -> nn.Module:
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, config.ff, dropout=0.1, activation="gelu", batch_first=True
        )
        return nn.TransformerEncoder(layer, config.layers, norm=nn.LayerNorm(config.dim), enable_nested_tensor=False)

    return invert(encoder)(**shape)
