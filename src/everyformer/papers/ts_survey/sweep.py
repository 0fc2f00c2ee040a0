"""The survey's studies as one function: sweep look-backs, depths or horizons for any of the forecasters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from everyformer.papers.ts_survey.harness import NAIVE, VARIANTS, Budget, Cell, Score, Variant, naive, scored
from everyformer.papers.ts_survey.model import MODELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"lookback": "steps of history", "layers": "encoder layers", "horizon": "steps ahead"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A cell of a study's table. ``layers`` is 0 for forecasts without layers."""

    model: str
    variant: str
    lookback: int
    horizon: int
    layers: int
    mse: float
    mae: float
    parameters: int

    @property
    def name(self) -> str:
        """The model, and what became of its decomposition if anything."""
        return self.model if self.variant == "published" else f"{self.model}, {self.variant}"


@dataclasses.dataclass(frozen=True)
class Study:
    """What a sweep along ``axis`` found; forecasts that repeat the past and DLinear are always among the rows."""

    axis: str
    rows: tuple[Row, ...]

    def at(self, model: str, value: int, variant: str = "published") -> Row:
        """The row of a model at a value of the axis; ``ValueError`` where there is none."""
        for row in self.rows:
            if (row.model, getattr(row, self.axis), row.variant) == (model, value, variant):
                return row
        raise ValueError(f"there is no row of {model!r}, {variant!r}, at {self.axis} {value}")

    def lines(self) -> dict[str, tuple[list[float], list[float]]]:
        """Test MSE along the axis, by model; a training that diverged leaves a gap."""
        found: dict[str, tuple[list[float], list[float]]] = {}
        for row in self.rows:
            if row.mse == row.mse:
                xs, ys = found.setdefault(row.name, ([], []))
                xs.append(float(getattr(row, self.axis)))
                ys.append(row.mse)
        return found

    def frame(self) -> Any:
        """The rows as a pandas frame."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError('pandas is needed for frames: pip install "everyformer[series]"') from error
        return pandas.DataFrame([dataclasses.asdict(row) for row in self.rows])

    def plot(self) -> Figure:
        """Test MSE along the axis, a line for each model."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axis = figure.add_subplot()
        for name, (xs, ys) in self.lines().items():
            axis.plot(xs, ys, marker="o", label=name, linestyle="--" if name in NAIVE else "-")
        axis.set_xlabel(AXES[self.axis])
        axis.set_ylabel("test MSE")
        axis.set_yscale("log")
        axis.grid(True, which="both", linewidth=0.4)
        figure.legend(loc="outside right upper")
        return figure


def study(
    models: Sequence[str],
    *,
    lengths: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    horizons: Sequence[int] | None = None,
    lookback: int = 96,
    horizon: int = 96,
    variants: Sequence[Variant] = ("published",),
    budget: Budget | None = None,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "32-true",
    progress: Callable[[str], None] = lambda line: None,
) -> Study:
    """Train every model at every value of one axis under the same budget, and score it on the same test windows.

    Trained models are kept beside the downloaded data, so asking again costs the test alone.

    Args:
        models: names of ``MODELS``; DLinear and what repeats the past are added.
        lengths, layers, horizons: the values to sweep, of exactly one of these.
        lookback, horizon: steps, where they are not swept.
        variants: ``published``; ``without`` or ``with`` decomposition; ``normalised``: without, in normed windows.
        budget: what each model gets.
        seed: of weights, batches and dropout.
        progress: called with a line as each model is done.

    Raises:
        ValueError: no or several axes, an empty one, unknown models or variants, or steps that the data do not have.
    """
    given = {"lookback": lengths, "layers": layers, "horizon": horizons}
    swept = {axis: values for axis, values in given.items() if values is not None}
    if len(swept) != 1 or not next(iter(swept.values())):
        raise ValueError(f"exactly one of lengths, layers and horizons must hold values, got {sorted(swept) or 'none'}")
    unknown = sorted(set(models) - set(MODELS))
    if unknown or not models:
        raise ValueError(f"models must be some of {', '.join(MODELS)}, got {unknown or 'none'}")
    strange = sorted(set(variants) - set(VARIANTS))
    if strange or not variants:
        raise ValueError(f"variants must be some of {', '.join(VARIANTS)}, got {strange or 'none'}")
    budget = budget or Budget()
    ((axis, values),) = swept.items()
    rows = []

    def add(cell: Cell, score: Score) -> None:
        rows.append(Row(cell.model, cell.variant, cell.lookback, cell.horizon, cell.layers, *_figures(score)))
        progress(f"{rows[-1].name}, {axis} {getattr(cell, axis)}: MSE {score.mse:.4g}")

    for value in values:
        where: dict[str, Any] = {"lookback": lookback, "horizon": horizon, axis: value}
        for model in models:
            for variant in variants:
                if model != "dlinear":
                    cell = Cell(model, variant=variant, **where)
                    add(cell, scored(cell, budget, seed=seed, device=device, precision=precision))
        cell = Cell("dlinear", **where)
        add(cell, scored(cell, budget, seed=seed, device=device, precision=precision))
        for name in NAIVE:
            add(Cell(name, **where), naive(name, budget, where["lookback"], where["horizon"]))
    return Study(axis, tuple(rows))


def _figures(score: Score) -> tuple[float, float, int]:
    return score.mse, score.mae, score.parameters
