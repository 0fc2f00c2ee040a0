"""How fast a cost grows; apart from the measuring, so that what only reads figures does not wait for torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The power of ``xs`` with which ``ys`` grow: the least-squares slope of their logarithms, of two points or more."""
    return statistics.linear_regression(*([math.log(value) for value in values] for values in (xs, ys))).slope
