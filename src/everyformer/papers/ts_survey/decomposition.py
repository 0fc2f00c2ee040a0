"""Season and trend: the decomposition, and two ways to carry a window's level past any forecaster (section 5).

The survey's third study adds a seasonal-trend decomposition to plain transformers; :class:`Decomposed` does so for any
model that is called ``model(series, marks, future)``. :class:`Normalised` is its control.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.parts.series_layers import check_inputs, check_positive, normalise_window


class SeriesDecomposition(nn.Module):
    """Season and trend of a series; the trend is a moving average with both ends repeated (arXiv 2106.13008, eq. 1).

    Args:
        kernel: steps that are averaged, odd; for several, the trend is the mean of theirs.

    Raises:
        ValueError: no ``kernel``, or one that is even or below 1.
    """

    def __init__(self, kernel: int | Sequence[int] = 25) -> None:
        super().__init__()
        self.kernels = (kernel,) if isinstance(kernel, int) else tuple(kernel)
        if not self.kernels or any(width < 1 or width % 2 == 0 for width in self.kernels):
            raise ValueError(f"kernel must be odd and at least 1, got {kernel}")

    def forward(
        self, series: Float[Tensor, "batch time variates"]
    ) -> tuple[Float[Tensor, "batch time variates"], Float[Tensor, "batch time variates"]]:
        """Season and trend, which add up to ``series``.

        Raises:
            ValueError: a series shorter than the window.
        """
        if series.shape[1] < max(self.kernels):
            raise ValueError(f"kernel must be at most the {series.shape[1]} steps of the series, got {self.kernels}")
        x = series.transpose(1, 2)
        trends = [
            F.avg_pool1d(F.pad(x, (width // 2, width // 2), mode="replicate"), width, stride=1)
            for width in self.kernels
        ]
        trend = sum(trends[1:], trends[0]).div(len(trends)).transpose(1, 2)
        return series - trend, trend


def _sizes(model: nn.Module) -> tuple[int, int]:
    """Look-back and horizon of a forecaster; ``TypeError`` where it does not tell."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    sizes = tuple(getattr(model, name, None) for name in ("lookback", "horizon"))
    if not all(isinstance(size, int) for size in sizes):
        raise TypeError(f"model must have the attributes lookback and horizon, {type(model).__name__} has {sizes}")
    return sizes  # type: ignore[return-value]


class Decomposed(nn.Module):
    """A forecaster of the seasonal part, and a linear one of the trend, shared by all variates.

    The trend's forecast is the window's mean plus a linear map of how the trend departs from it, so a shift of the
    series shifts the forecast by as much.

    Args:
        model: called ``model(series, marks, future)``, with the attributes ``lookback`` and ``horizon``.
        kernel: as for :class:`SeriesDecomposition`, at most the look-back.

    Raises:
        TypeError: a model without these attributes.
        ValueError: a kernel that is even, below 1 or longer than the look-back.
    """

    def __init__(self, model: nn.Module, kernel: int | Sequence[int] = 25) -> None:
        super().__init__()
        self.lookback, self.horizon = _sizes(model)
        self.model = model
        self.decomposition = SeriesDecomposition(kernel)
        if max(self.decomposition.kernels) > self.lookback:
            raise ValueError(f"kernel must be at most lookback={self.lookback}, got {kernel}")
        self.trend = nn.Linear(self.lookback, self.horizon)
        nn.init.constant_(self.trend.weight, 1 / self.lookback)
        nn.init.zeros_(self.trend.bias)

    def forward(
        self,
        series: Float[Tensor, "batch lookback variates"],
        marks: Float[Tensor, "batch lookback marks"] | None = None,
        future: Float[Tensor, "batch horizon marks"] | None = None,
    ) -> Float[Tensor, "batch horizon variates"]:
        """The model's forecast of the season plus that of the trend."""
        seasonal, trend = self.decomposition(series)
        level = series.mean(dim=1, keepdim=True)
        carried = self.trend((trend - level).transpose(1, 2)).transpose(1, 2)
        return self.model(seasonal, marks, future) + carried + level  # type: ignore[no-any-return]


class Normalised(nn.Module):
    """A forecaster of windows with zero mean and unit deviation per variate, undone on the forecast.

    What carries the level here has no decomposition and no weights.

    Args:
        model: as for :class:`Decomposed`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.lookback, self.horizon = _sizes(model)
        self.model = model

    def forward(
        self,
        series: Float[Tensor, "batch lookback variates"],
        marks: Float[Tensor, "batch lookback marks"] | None = None,
        future: Float[Tensor, "batch horizon marks"] | None = None,
    ) -> Float[Tensor, "batch horizon variates"]:
        """The forecast in the units of the series."""
        window, mean, deviation = normalise_window(series)
        return self.model(window, marks, future) * deviation + mean  # type: ignore[no-any-return]


class DLinear(nn.Module):
    """Two linear maps, of the season and of the trend, shared by all variates (arXiv 2205.13504).

    Args:
        lookback: steps of history, at least ``kernel``.
        horizon: steps to forecast.
        kernel: as for :class:`SeriesDecomposition`.

    Raises:
        ValueError: a size below 1, or a kernel that is even or longer than the look-back.
    """

    def __init__(self, lookback: int, horizon: int, kernel: int = 25) -> None:
        super().__init__()
        check_positive(lookback=lookback, horizon=horizon)
        if kernel > lookback:
            raise ValueError(f"kernel must be at most lookback={lookback}, got {kernel}")
        self.lookback, self.horizon = lookback, horizon
        self.decomposition = SeriesDecomposition(kernel)
        self.seasonal = nn.Linear(lookback, horizon)
        self.trend = nn.Linear(lookback, horizon)
        for part in (self.seasonal, self.trend):
            nn.init.constant_(part.weight, 1 / lookback)

    def forward(
        self,
        series: Float[Tensor, "batch lookback variates"],
        marks: Float[Tensor, "batch lookback marks"] | None = None,
        future: Float[Tensor, "batch horizon marks"] | None = None,
    ) -> Float[Tensor, "batch horizon variates"]:
        """The forecast of any number of variates; calendar features are not looked at."""
        check_inputs(series, None, None, steps=(self.lookback, self.horizon), widths=(0, 0))
        seasonal, trend = self.decomposition(series)
        return torch.add(self.seasonal(seasonal.transpose(1, 2)), self.trend(trend.transpose(1, 2))).transpose(1, 2)
