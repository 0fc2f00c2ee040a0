"""Time series for forecasting: windows as views of one tensor, standard splits, scaling, calendar features."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

# Steps of 30-day months in the ETT sets: 12 for training, 4 each for validation and test.
_ETT_MONTH = {"etth": 30 * 24, "ettm": 30 * 24 * 4}


def split_points(name: str, length: int) -> tuple[int, int, int]:
    """Ends of the training, validation and test parts of a data set, in steps from its start.

    ETT: 12, 4 and 4 months of 30 days. PEMS: 60, 20 and 20 per cent. Others: 70, 10 and 20 per cent
    (arXiv 2310.06625, appendix A.1).
    """
    for prefix, month in _ETT_MONTH.items():
        if name.startswith(prefix):
            return 12 * month, 16 * month, 20 * month
    if name.startswith("pems"):
        return int(0.6 * length), int(0.8 * length), length
    return int(0.7 * length), length - int(0.2 * length), length


@dataclasses.dataclass(frozen=True)
class Scaler:
    """Mean and population deviation per variate; a deviation of zero counts as one."""

    mean: Float[Tensor, "variates"]
    deviation: Float[Tensor, "variates"]

    @classmethod
    def fit(cls, values: Float[Tensor, "time variates"]) -> Scaler:
        """The scaler that gives ``values`` zero mean and unit deviation."""
        deviation = values.std(dim=0, correction=0)
        return cls(values.mean(dim=0), torch.where(deviation > 0, deviation, torch.ones_like(deviation)))

    def scale(self, values: Tensor) -> Tensor:
        """To standard units; the last dimension is variates."""
        return (values - self.mean) / self.deviation

    def unscale(self, values: Tensor) -> Tensor:
        """Back to the data's units."""
        return values * self.deviation + self.mean


@dataclasses.dataclass(frozen=True)
class Windows:
    """Every window of look-back and horizon in a stretch of a series, gathered batch by batch from one tensor.

    Args:
        values: the stretch (time, variates).
        lookback: steps of history in a window.
        horizon: steps to forecast.
        marks: calendar features of the stretch (time, features), if any.

    Raises:
        ValueError: a horizon or look-back below 1, or a stretch shorter than one window.
    """

    values: Float[Tensor, "time variates"]
    lookback: int
    horizon: int
    marks: Float[Tensor, "time features"] | None = None

    def __post_init__(self) -> None:
        for name in ("lookback", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(self.values) < self.lookback + self.horizon:
            raise ValueError(
                f"lookback {self.lookback} and horizon {self.horizon} need {self.lookback + self.horizon} steps, "
                f"the series has {len(self.values)}"
            )

    def __len__(self) -> int:
        return len(self.values) - self.lookback - self.horizon + 1

    def gather(self, index: Int[Tensor, "batch"]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """History, target, and the calendar features of both, of the windows that begin at ``index``."""
        steps = index.unsqueeze(1) + torch.arange(self.lookback + self.horizon, device=index.device)
        past, future = steps[:, : self.lookback], steps[:, self.lookback :]
        marks = (None, None) if self.marks is None else (self.marks[past], self.marks[future])
        return self.values[past], self.values[future], *marks

    def batches(
        self, size: int, order: Int[Tensor, "windows"] | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
        """Batches of up to ``size`` windows, in the order of time or in ``order``."""
        for index in (torch.arange(len(self)) if order is None else order).split(size):
            yield self.gather(index)

    def shuffled(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
        """Full batches in random order, a function of ``seed``; what does not fill a batch is left out."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        size = min(size, len(self))
        return self.batches(size, order[: len(self) // size * size])


def calendar_features(dates: NDArray[np.datetime64], frequency: str) -> Float[Tensor, "time features"]:
    """Calendar features in [-0.5, 0.5], the finest first.

    ``"h"``: hour of day, day of week, day of month, day of year. ``"t"`` has the minute before these, ``"d"`` lacks the
    hour. As used with ``embed=timeF`` in thuml/iTransformer.

    Raises:
        ValueError: another frequency.
    """
    starts = {"t": 0, "h": 1, "d": 2}
    if frequency not in starts:
        raise ValueError(f"frequency must be one of {sorted(starts)}, got {frequency!r}")
    day = dates.astype("datetime64[D]")
    month, year = dates.astype("datetime64[M]"), dates.astype("datetime64[Y]")
    seconds = (dates.astype("datetime64[s]") - day).astype(np.int64)
    columns = [
        (seconds // 60 % 60) / 59,
        (seconds // 3600) / 23,
        ((day.astype(np.int64) + 3) % 7) / 6,  # 1970-01-01 was a Thursday
        (day - month).astype(np.int64) / 30,
        (day - year).astype(np.int64) / 365,
    ]
    return torch.from_numpy(np.stack(columns[starts[frequency] :], axis=1).astype(np.float32)) - 0.5


@dataclasses.dataclass(frozen=True)
class Split:
    """A data set cut into training, validation and test windows, in units of the training part's scaler."""

    train: Windows
    validation: Windows
    test: Windows
    scaler: Scaler


def split(
    name: str,
    values: Float[Tensor, "time variates"],
    lookback: int,
    horizon: int,
    marks: Float[Tensor, "time features"] | None = None,
) -> Split:
    """The standard split of data set ``name``.

    Validation and test begin a look-back early, so that their first target is their first step.
    """
    ends = split_points(name, len(values))
    scaler = Scaler.fit(values[: ends[0]])
    scaled = scaler.scale(values)

    def part(start: int, end: int) -> Windows:
        return Windows(scaled[start:end], lookback, horizon, None if marks is None else marks[start:end])

    return Split(part(0, ends[0]), part(ends[0] - lookback, ends[1]), part(ends[1] - lookback, ends[2]), scaler)
