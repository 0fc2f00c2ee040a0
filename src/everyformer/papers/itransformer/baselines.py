"""What iTransformer is compared with, called as it is: the transformer that it inverts, and a linear model."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.parts.series_layers import check_inputs, check_positive
from everyformer.parts.series_vanilla import VanillaTransformer

__all__ = ["DLinear", "VanillaTransformer"]


class DLinear(nn.Module):
    """A linear map of trend and remainder, shared by all variates (Zeng et al., arXiv 2205.13504).

    The trend is a moving average with the ends repeated. Both maps start as averages over the look-back.

    Args:
        lookback: steps of history.
        horizon: steps to forecast.
        kernel: width of the moving average, odd.

    Raises:
        ValueError: a size below 1 or an even ``kernel``.
    """

    def __init__(self, lookback: int, horizon: int, kernel: int = 25) -> None:
        super().__init__()
        check_positive(lookback=lookback, horizon=horizon, kernel=kernel)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        self.lookback = lookback
        self.horizon = horizon
        self.marks = 0
        self.future = 0
        self.kernel = kernel
        self.seasonal = nn.Linear(lookback, horizon)
        self.trend = nn.Linear(lookback, horizon)
        for part in (self.seasonal, self.trend):
            nn.init.constant_(part.weight, 1 / lookback)

    def forward(
        self,
        series: Float[Tensor, "batch lookback variates"],
        marks: None = None,
        future: None = None,
    ) -> Float[Tensor, "batch horizon variates"]:
        """The forecast of every variate; any number of variates is accepted, calendar features are not.

        Raises:
            ValueError: an input that does not have the shape the model was built for.
        """
        check_inputs(series, marks, future, steps=(self.lookback, self.horizon), widths=(0, 0))
        x = series.transpose(1, 2)
        half = self.kernel // 2
        trend = F.avg_pool1d(F.pad(x, (half, half), mode="replicate"), self.kernel, stride=1)
        return (self.seasonal(x - trend) + self.trend(trend)).transpose(1, 2)
