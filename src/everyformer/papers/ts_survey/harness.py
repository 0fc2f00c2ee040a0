"""One harness for every forecaster: the same windows, batches, steps and learning rate, the same test windows."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from everyformer.lab import data, pretrained
from everyformer.lab.train import fit_drawn
from everyformer.papers.ts_survey import attention, autoformer, decomposition, model
from everyformer.papers.ts_survey.decomposition import Decomposed, Normalised
from everyformer.papers.ts_survey.model import create
from everyformer.parts import series, series_attention, series_layers, series_vanilla
from everyformer.parts.series import Split, Windows, calendar_features, split, split_points

Variant = Literal["published", "without", "with", "normalised"]
VARIANTS: tuple[str, ...] = get_args(Variant)
INSIDE = ("autoformer", "fedformer_lite")  # models that decompose between their layers
CODE = (attention, autoformer, decomposition, model, series, series_attention, series_layers, series_vanilla)
NAIVE = {"last value": 1, "last day": 24}  # what is repeated, in hours


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every model of a study gets: data, sizes, steps of Adam at a rate that falls to zero, and test windows.

    ``stride`` is how many test windows there are to one that is scored.
    """

    data: str = "etth2"
    steps: int = 200
    rate: float = 1e-3
    batch: int = 32
    dim: int = 64
    ff: int = 128
    heads: int = 4
    dropout: float = 0.1
    stride: int = 8


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model of a study. ``without``, ``with`` and ``normalised`` say what becomes of the decomposition."""

    model: str
    lookback: int
    horizon: int
    layers: int = 2
    variant: Variant = "published"

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")

    def build(self, budget: Budget, variates: int, marks: int) -> nn.Module:
        """The model with its first weights."""
        sizes: dict[str, Any] = {"dim": budget.dim, "ff": budget.ff, "heads": budget.heads, "dropout": budget.dropout}
        inner = create(
            self.model, self.lookback, self.horizon, variates,
            layers=self.layers, marks=marks, decomposition=self.variant in ("published", "with"), **sizes,
        )  # fmt: skip
        if self.variant == "with" and self.model not in INSIDE:
            return Decomposed(inner)
        return Normalised(inner) if self.variant == "normalised" else inner

    @property
    def key(self) -> dict[str, Any]:
        """What settles the model, the same for names of the same thing."""
        plain = self.variant == "published" and self.model not in INSIDE
        same = {"variant": "without"} if plain else {"variant": "with"} if self.variant == "published" else {}
        return dataclasses.asdict(self) | same | ({"layers": 0} if self.model == "dlinear" else {})


@dataclasses.dataclass(frozen=True)
class Score:
    """Test errors in standard units; both are not-a-number where training diverged."""

    mse: float
    mae: float
    parameters: int


def check_dates(dates: NDArray[np.datetime64]) -> None:
    """Raise ``ValueError`` at the first date that is repeated or comes after a later one."""
    steps = np.diff(dates)
    for what, wrong in (("twice", steps == np.timedelta64(0)), ("after a later one", steps < np.timedelta64(0))):
        if wrong.any():
            raise ValueError(f"dates must increase, {dates[1:][wrong][0]} comes {what}")


def check_lengths(name: str, steps: int, lookback: int, horizon: int) -> None:
    """Raise ``ValueError`` that names the part of a data set which is shorter than one window."""
    ends = split_points(name, steps)
    starts = {"training": 0, "validation": ends[0] - lookback, "test": ends[1] - lookback}
    for (part, start), end in zip(starts.items(), ends, strict=True):
        if end - max(0, start) < lookback + horizon:
            raise ValueError(
                f"lookback {lookback} and horizon {horizon} need {lookback + horizon} steps, "
                f"the {part} part of {name} has {end - max(0, start)}"
            )


def load(name: str, lookback: int, horizon: int) -> Split:
    """A forecasting set in its standard split, with calendar features where it has dates.

    Raises:
        ValueError: a part shorter than one window (named), or dates that do not increase.
    """
    values, marks = _read(name)
    check_lengths(name, len(values), lookback, horizon)
    return split(name, values, lookback, horizon, marks)


@functools.lru_cache(maxsize=1)
def _read(name: str) -> tuple[Tensor, Tensor | None]:
    """Values and calendar features: parsing the file takes longer than a small training."""
    whole = data.series(name)
    if whole.dates is None:
        return torch.from_numpy(whole.values), None
    check_dates(whole.dates)
    return torch.from_numpy(whole.values), calendar_features(whole.dates, "t" if name.startswith("ettm") else "h")


def loss(forecaster: nn.Module, batch: tuple[Tensor, Tensor, Tensor | None, Tensor | None]) -> Tensor:
    """Mean squared error over steps and variates."""
    past, target, marks, future = batch
    return F.mse_loss(forecaster(past, marks, future).float(), target)


def trained(cell: Cell, budget: Budget, *, seed: int, device: str, precision: str = "32-true") -> nn.Module:
    """The cell's model after its training, on the CPU; not-a-number throughout where the loss was not finite."""
    windows = load(budget.data, cell.lookback, cell.horizon).train
    torch.manual_seed(seed)
    marks = 0 if windows.marks is None else windows.marks.shape[1]
    forecaster = cell.build(budget, windows.values.shape[1], marks)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return windows.gather(torch.randint(len(windows), (budget.batch,), generator=generator))

    def fit(folder: Path) -> None:
        try:
            fit_drawn(
                forecaster, loss, draw,
                steps=budget.steps, rate=budget.rate, warm=budget.steps // 10, folder=folder, seed=seed,
                device=device, precision=precision, label=f"{cell.model}, {cell.lookback} to {cell.horizon}",
            )  # fmt: skip
        except FloatingPointError:
            for parameter in forecaster.parameters():
                nn.init.constant_(parameter, math.nan)

    recipe = {**cell.key, **dataclasses.asdict(budget), "seed": seed, "precision": precision, "survey": "series"}
    recipe.pop("stride")  # of the test
    pretrained.load_or_train(forecaster, fit, recipe=recipe, samples=[windows.values], code=CODE)
    return forecaster.cpu()


def scored(cell: Cell, budget: Budget, *, seed: int, device: str, precision: str = "32-true") -> Score:
    """Train a cell, or take what was trained before, and score it on the test windows."""
    forecaster = trained(cell, budget, seed=seed, device=device, precision=precision)
    mse, mae = errors(forecaster, load(budget.data, cell.lookback, cell.horizon).test, budget.stride, device)
    return Score(mse, mae, sum(parameter.numel() for parameter in forecaster.parameters()))


@torch.no_grad()
def errors(forecaster: nn.Module, windows: Windows, stride: int, device: str = "cpu") -> tuple[float, float]:
    """Mean squared and absolute error over steps and variates of every ``stride``-th window."""
    forecaster.eval().to(device)
    torch.manual_seed(0)  # Informer and Reformer draw anew for every batch
    squared = absolute = 0.0
    chosen = torch.arange(0, len(windows), stride)
    for batch in windows.batches(64, chosen):
        past, target, marks, future = (None if part is None else part.to(device) for part in batch)
        difference = (forecaster(past, marks, future).float() - target).double()
        squared += difference.square().mean((1, 2)).sum().item()
        absolute += difference.abs().mean((1, 2)).sum().item()
    return squared / len(chosen), absolute / len(chosen)


class Repeat(nn.Module):
    """The last ``period`` steps over and over: persistence, and seasonal persistence."""

    def __init__(self, period: int, horizon: int) -> None:
        super().__init__()
        self.period, self.horizon = period, horizon

    def forward(self, series: Tensor, marks: Tensor | None = None, future: Tensor | None = None) -> Tensor:
        """(batch, lookback, variates) to (batch, horizon, variates)."""
        return series[:, -self.period :].repeat(1, -(-self.horizon // self.period), 1)[:, : self.horizon]


def naive(name: str, budget: Budget, lookback: int, horizon: int) -> Score:
    """The errors of one of ``NAIVE``."""
    period = NAIVE[name] * (4 if budget.data.startswith("ettm") and NAIVE[name] > 1 else 1)
    return Score(*errors(Repeat(period, horizon), load(budget.data, lookback, horizon).test, budget.stride), 0)
