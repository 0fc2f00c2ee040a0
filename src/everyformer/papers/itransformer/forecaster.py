"""Train and predict on arrays, pandas frames and long tables, with one model or several at once."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.papers.itransformer.model import ITransformer
from everyformer.parts.series import Scaler, Windows, calendar_features
from everyformer.parts.series_vanilla import VanillaTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Calendar features a model was built with, to the frequency that has as many.
_FREQUENCIES = {5: "t", 4: "h", 3: "d"}


@dataclasses.dataclass(frozen=True)
class _Table:
    """Any kind of input as one: values (time, variates), names, dates where there are some, and how it came."""

    values: Tensor
    names: list[Any]
    dates: Any
    kind: str


class Forecaster:
    """Fits one or several forecasters to a series and predicts what follows, in the kind of table it was given.

    Takes arrays (time, variates), wide pandas frames (one column per variate; dates as index), and long tables with the
    columns ``unique_id``, ``ds`` and ``y``. Values are standardised for the models and given back in the data's units.

    Args:
        models: a model with ``lookback``, ``horizon`` and ``marks``, or a dict of them by name.
        rate: Adam's learning rate; halved every epoch after the second.
        epochs: passes over the training windows at most.
        batch: windows in a batch.
        patience: epochs without improvement on the held-out end of the series before training stops.
        held_out: that end, as a fraction of the series.
        variates: train on this many variates drawn anew for each batch, all of them by default; models that take any
            number of variates then forecast the others too.
        seed: of shuffling and drawing.

    Raises:
        ValueError: a setting out of range, or data that cannot be used (see :meth:`fit`).
    """

    def __init__(
        self,
        models: nn.Module | Mapping[str, nn.Module],
        *,
        rate: float = 1e-3,
        epochs: int = 10,
        batch: int = 32,
        patience: int = 3,
        held_out: float = 0.2,
        variates: int | None = None,
        seed: int = 0,
    ) -> None:
        self.models: dict[str, Any] = dict(models) if isinstance(models, Mapping) else {type(models).__name__: models}
        if not self.models:
            raise ValueError("models must hold at least one model")
        sizes = {(model.lookback, model.horizon) for model in self.models.values()}
        if len(sizes) > 1:
            raise ValueError(f"models must agree in lookback and horizon, got {sorted(sizes)}")
        ((self.lookback, self.horizon),) = sizes
        for name, value in (("epochs", epochs), ("batch", batch), ("patience", patience)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must be between 0 and 1, got {held_out}")
        self.rate, self.epochs, self.batch, self.patience = rate, epochs, batch, patience
        self.held_out, self.variates, self.seed = held_out, variates, seed
        self._table: _Table | None = None
        self._scaler: Scaler | None = None

    def fit(self, data: Any) -> Forecaster:
        """Train every model on ``data`` and remember its end, from which :meth:`predict` goes on.

        Raises:
            ValueError: missing values or a constant variate (named), dates that do not increase or repeat, a series
                shorter than a window, a model with calendar features where there are no dates.
            TypeError: another kind of data.
        """
        table = _read(data)
        _check(table)
        self._train(table)
        self._table = table
        return self

    def predict(self, horizon: int | None = None, data: Any = None) -> Any:
        """The next ``horizon`` steps (the models' horizon by default) after ``data``, or after what was fitted.

        The result is of the kind the data came in: an array (horizon, variates), a wide frame, or a long table with a
        column per model. With several models, arrays and wide frames come in a dict by name. ``data`` may have other
        variates than were fitted, for models that take any number; they are standardised by themselves.

        Raises:
            ValueError: not fitted, a horizon out of range, or data shorter than the look-back.
        """
        if self._table is None or self._scaler is None:
            raise ValueError("fit must be called before predict")
        horizon = self.horizon if horizon is None else horizon
        if not 1 <= horizon <= self.horizon:
            raise ValueError(f"horizon must be between 1 and the models' {self.horizon}, got {horizon}")
        table = self._table
        if data is not None:
            table = _read(data)
            _check(table, constant=False)
        if len(table.values) < self.lookback:
            raise ValueError(f"data must have at least the lookback of {self.lookback} steps, got {len(table.values)}")
        scaler = self._scaler if table.names == self._table.names else Scaler.fit(table.values)
        found = {name: values[:horizon] for name, values in self._forecasts(table, scaler).items()}
        return _write(found, table, _next_dates(table.dates, horizon))

    def cross_validation(self, data: Any, windows: int = 3, step: int | None = None) -> Any:
        """Forecasts of the last ``windows`` windows of ``data``, ``step`` (the horizon) apart, fitted before the first.

        Long and wide tables give a long table with ``unique_id``, ``ds``, ``cutoff``, ``y`` and a column per model;
        arrays give a list of (cutoff, truth, forecasts by model).

        Raises:
            ValueError: as :meth:`fit`, or fewer than one window.
        """
        if windows < 1:
            raise ValueError(f"windows must be at least 1, got {windows}")
        table, step = _read(data), step or self.horizon
        _check(table)
        first = len(table.values) - self.horizon - (windows - 1) * step
        before = _part(table, max(first, 0))
        self._train(before)
        self._table = before
        assert self._scaler is not None
        rounds = []
        for cutoff in range(first, len(table.values) - self.horizon + 1, step):
            found = self._forecasts(_part(table, cutoff), self._scaler)
            rounds.append((cutoff, table.values[cutoff : cutoff + self.horizon].numpy(), found))
        if table.kind == "array":
            return rounds
        pandas = _pandas()
        frames = []
        for cutoff, truth, found in rounds:
            dates = table.dates[cutoff : cutoff + self.horizon]
            long = _long(pandas, {"y": truth, **found}, table.names, dates)
            long.insert(2, "cutoff", table.dates[cutoff - 1])
            frames.append(long)
        return pandas.concat(frames, ignore_index=True)

    def plot_attention(self, model: str | None = None, layer: int = 0) -> Figure:
        """Which variate attends to which, over the last look-back that was fitted (mean over heads).

        Raises:
            ValueError: not fitted, or a model without attention maps.
        """
        if self._table is None or self._scaler is None:
            raise ValueError("fit must be called before plot_attention")
        name = model or next(iter(self.models))
        chosen = self.models.get(name)
        if not isinstance(chosen, ITransformer):
            raise ValueError(f"model must name an ITransformer, got {name!r}")
        from matplotlib.figure import Figure

        past, marks, _ = self._window(self._table, self._scaler, chosen)
        with torch.no_grad():
            _, maps = chosen.eval()(past, marks, return_attention=True)
        labels = [str(column) for column in self._table.names] + [f"mark {index}" for index in range(chosen.marks)]
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axis = figure.add_subplot()
        picture = axis.imshow(maps[layer][0].mean(0).numpy(), cmap="viridis")
        for ticks in (axis.set_xticks, axis.set_yticks):
            ticks(range(len(labels)), labels)
        axis.tick_params(axis="x", rotation=60)
        axis.set(xlabel="attended to", ylabel="token", title=f"{name}, layer {layer + 1}")
        figure.colorbar(picture, label="weight, mean of heads")
        return figure

    def _train(self, table: _Table) -> None:
        end = int((1 - self.held_out) * len(table.values))
        self._scaler = Scaler.fit(table.values[:end])
        values = self._scaler.scale(table.values)
        for name, model in self.models.items():
            marks = _marks(table.dates, model)
            train = Windows(values[:end], self.lookback, self.horizon, None if marks is None else marks[:end])
            start = max(0, end - self.lookback)
            held = Windows(values[start:], self.lookback, self.horizon, None if marks is None else marks[start:])
            self._train_one(name, model, train, held)

    def _train_one(self, name: str, model: Any, train: Windows, held: Windows) -> None:
        optimizer = torch.optim.Adam(model.parameters(), self.rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5 ** max(0, epoch - 1))
        best, weights, stale = float("inf"), copy.deepcopy(model.state_dict()), 0
        for epoch in range(self.epochs):
            model.train()
            for past, target, marks, future in self._batches(train, epoch):
                optimizer.zero_grad()
                F.mse_loss(_call(model, past, marks, future), target).backward()
                optimizer.step()
            schedule.step()
            model.eval()
            with torch.no_grad():
                errors = [
                    (F.mse_loss(_call(model, past, marks, future), target).item(), len(past))
                    for past, target, marks, future in held.batches(256)
                ]
            score = sum(error * count for error, count in errors) / len(held)
            if not np.isfinite(score):
                raise FloatingPointError(f"{name}: the held-out error is {score} after epoch {epoch}; lower the rate")
            if score <= best:
                best, weights, stale = score, copy.deepcopy(model.state_dict()), 0
            else:
                stale += 1
                if stale == self.patience:
                    break
        model.load_state_dict(weights)

    def _batches(self, train: Windows, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        for past, target, marks, future in train.shuffled(self.batch, 1000 * self.seed + epoch):
            if self.variates is None:
                yield past, target, marks, future
            else:
                chosen = torch.randperm(past.shape[-1], generator=generator)[: self.variates]
                yield past[..., chosen], target[..., chosen], marks, future

    def _forecasts(self, table: _Table, scaler: Scaler) -> dict[str, np.ndarray[Any, Any]]:
        found = {}
        for name, model in self.models.items():
            past, marks, future = self._window(table, scaler, model)
            with torch.no_grad():
                found[name] = scaler.unscale(_call(model.eval(), past, marks, future))[0].numpy()
        return found

    def _window(self, table: _Table, scaler: Scaler, model: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        past = scaler.scale(table.values[-self.lookback :]).unsqueeze(0)
        if not model.marks:
            return past, None, None
        known = np.concatenate([table.dates, _next_dates(table.dates, self.horizon)])
        marks = _marks(known, model)
        assert marks is not None
        marks = marks[-self.lookback - self.horizon :].unsqueeze(0)
        return past, marks[:, : self.lookback], marks[:, self.lookback :]


def _call(model: Any, past: Tensor, marks: Tensor | None, future: Tensor | None) -> Tensor:
    if isinstance(model, VanillaTransformer):
        return model(past, marks, future)  # type: ignore[no-any-return]
    return model(past, marks)  # type: ignore[no-any-return]


def _marks(dates: Any, model: Any) -> Tensor | None:
    count: Any = model.marks
    if not count:
        return None
    if dates is None:
        raise ValueError(f"data must have dates for a model with marks={count}")
    if count not in _FREQUENCIES:
        raise ValueError(f"marks must be one of {sorted(_FREQUENCIES)} to be made from dates, got {count}")
    return calendar_features(dates, _FREQUENCIES[count])


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError('pandas is needed for tables: pip install "everyformer[series]"') from error
    return pandas


def _read(data: Any) -> _Table:
    if isinstance(data, torch.Tensor | np.ndarray):
        values = torch.tensor(data, dtype=torch.float32) if isinstance(data, np.ndarray) else data.float()
        if values.ndim != 2:
            raise ValueError(f"data must be (time, variates), got {tuple(values.shape)}")
        return _Table(values, list(range(values.shape[1])), None, "array")
    if not hasattr(data, "columns"):
        raise TypeError(f"data must be an array, a tensor or a pandas frame, got {type(data).__name__}")
    kind = "wide"
    if {"unique_id", "ds", "y"} <= set(data.columns):
        kind = "long"
        repeated = data.duplicated(["unique_id", "ds"])
        if repeated.any():
            row = data[repeated].iloc[0]
            raise ValueError(f"data has the date {row['ds']} twice for unique_id {row['unique_id']!r}")
        data = data.pivot(index="ds", columns="unique_id", values="y")
    dates = data.index.to_numpy()
    has_dates = np.issubdtype(dates.dtype, np.datetime64)
    return _Table(
        torch.from_numpy(data.to_numpy(dtype=np.float32, copy=True)),
        list(data.columns),
        dates if has_dates else None,
        kind,
    )


def _check(table: _Table, constant: bool = True) -> None:
    missing = [str(name) for name, bad in zip(table.names, table.values.isnan().any(0).tolist(), strict=True) if bad]
    if missing:
        raise ValueError(f"data has missing values in {', '.join(missing[:5])}: fill them or leave these out")
    if not table.values.isfinite().all():
        raise ValueError("data must be finite, it holds infinite values")
    still = [
        str(name)
        for name, low in zip(table.names, (table.values == table.values[:1]).all(0).tolist(), strict=True)
        if low
    ]
    if constant and still:
        raise ValueError(f"data has constant variates: {', '.join(still[:5])}; leave these out")
    if table.dates is not None:
        steps = np.diff(table.dates)
        if (steps == np.timedelta64(0)).any():
            raise ValueError(f"data has the date {table.dates[1:][steps == np.timedelta64(0)][0]} twice")
        if (steps < np.timedelta64(0)).any():
            raise ValueError(
                f"dates must increase; {table.dates[1:][steps < np.timedelta64(0)][0]} comes after a later one"
            )


def _part(table: _Table, end: int) -> _Table:
    return dataclasses.replace(
        table, values=table.values[:end], dates=None if table.dates is None else table.dates[:end]
    )


def _next_dates(dates: Any, horizon: int) -> Any:
    """Dates after the last one, by the most common step."""
    if dates is None:
        return None
    steps, counts = np.unique(np.diff(dates), return_counts=True)
    return dates[-1] + steps[counts.argmax()] * np.arange(1, horizon + 1)


def _long(pandas: Any, columns: Mapping[str, Any], names: list[Any], dates: Any) -> Any:
    """A long table of (horizon, variates) arrays by column name."""
    length = len(next(iter(columns.values())))
    ds = np.arange(length) if dates is None else dates
    long = pandas.DataFrame(
        {"unique_id": np.repeat(np.array(names, dtype=object), length), "ds": np.tile(ds, len(names))}
    )
    for column, values in columns.items():
        long[column] = np.asarray(values).T.reshape(-1)
    return long


def _write(found: Mapping[str, np.ndarray[Any, Any]], table: _Table, dates: Any) -> Any:
    if table.kind == "long":
        return _long(_pandas(), found, table.names, dates)
    results: dict[str, Any] = dict(found)
    if table.kind == "wide":
        pandas = _pandas()
        results = {name: pandas.DataFrame(values, index=dates, columns=table.names) for name, values in found.items()}
    return results if len(results) > 1 else next(iter(results.values()))
