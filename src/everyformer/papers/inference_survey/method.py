"""The survey's methods as one catalogue, and the curve of size against quality on which each is a point.

Sections 2 to 5 of arXiv 2307.07982: distillation, pruning, quantisation and lighter layers. A scheme is a method at one
setting, or several in a row; :func:`curve` compresses a copy of a model by each and measures what is left.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from everyformer import compressors
from everyformer.parts.compress import storage


@dataclasses.dataclass(frozen=True, eq=False)
class Scheme:
    """One way to compress: a name, and steps for :func:`everyformer.compressors.compose`."""

    name: str
    family: str
    steps: tuple[tuple[str, dict[str, Any]], ...]

    @property
    def heals(self) -> bool:
        """Whether there is anything that training can make good: all but fewer bits and fewer tokens."""
        cards = compressors.cards()
        return any(cards[name].stage not in ("bits", "tokens") for name, _ in self.steps)


def _scheme(name: str, family: str, *steps: tuple[str, dict[str, Any]]) -> Scheme:
    return Scheme(name, family, steps)


_Step = tuple[str, dict[str, Any]]
_INT8: _Step = ("int8", {})
_INT4: _Step = ("int4", {"group": 32})
_HALF: _Step = ("magnitude", {"sparsity": 0.5})
SCHEMES: tuple[Scheme, ...] = (
    _scheme("int8", "fewer bits", _INT8),
    _scheme("int4", "fewer bits", _INT4),
    _scheme("NVFP4", "fewer bits", ("nvfp4", {})),
    _scheme("half of the weights", "zeros", _HALF),
    _scheme("a fifth of the weights", "zeros", ("magnitude", {"sparsity": 0.8})),
    _scheme("2 of 4 weights", "zeros", ("n_of_m", {"n": 2, "m": 4})),
    _scheme("half of the heads", "heads and blocks", ("heads", {"ratio": 0.5})),
    _scheme("three quarters of the blocks", "heads and blocks", ("blocks", {"ratio": 0.25})),
    _scheme("half of the blocks", "heads and blocks", ("blocks", {"ratio": 0.5})),
    _scheme("factors with half of the weights", "factors and sharing", ("low_rank", {"ratio": 0.5})),
    _scheme("blocks shared by two", "factors and sharing", ("sharing", {"every": 2})),
    _scheme("half of the weights, int8", "composed", _HALF, _INT8),
    _scheme("half of the weights, int4", "composed", _HALF, _INT4),
    _scheme("half of the heads, int8", "composed", ("heads", {"ratio": 0.5}), _INT8),
)


@dataclasses.dataclass(frozen=True)
class Point:
    """A compressed model on the curve: bytes of its file, and its quality."""

    scheme: Scheme | None
    size: int
    quality: float
    model: nn.Module = dataclasses.field(repr=False, compare=False)


def compressed(
    model: nn.Module, scheme: Scheme, heal: Callable[[nn.Module, Scheme], object] | None = None
) -> nn.Module:
    """A copy of ``model``, compressed; ``heal`` trains it on where that can help, before weights lose bits."""
    return compressors.compose(  # type: ignore[no-any-return]
        copy.deepcopy(model), scheme.steps, heal=None if heal is None else lambda made: heal(made, scheme)
    )


def curve(
    model: nn.Module,
    quality: Callable[[nn.Module], float],
    *,
    schemes: Iterable[Scheme] = SCHEMES,
    heal: Callable[[nn.Module, Scheme], object] | None = None,
) -> list[Point]:
    """The model as it is, and compressed by each scheme: how large its file is and how good it is.

    Args:
        quality: higher is better.
        heal: ``heal(compressed, scheme)`` trains in place; without it a method shows what it costs untrained.
    """
    points = [Point(None, len(storage.to_bytes(model)), quality(model), model)]
    for scheme in schemes:
        made = compressed(model, scheme, heal)
        points.append(Point(scheme, len(storage.to_bytes(made)), quality(made), made))
    return points


def frontier(points: Iterable[Point]) -> list[Point]:
    """Those that no smaller or equally small one betters, the smallest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.size, -point.quality)):
        if not kept or point.quality > kept[-1].quality:
            kept.append(point)
    return kept


def best_within(points: Iterable[Point], size: float) -> Point:
    """The best of those whose file has at most ``size`` bytes.

    Raises:
        ValueError: none is so small.
    """
    listed = list(points)
    fitting = [point for point in listed if point.size <= size]
    if not fitting:
        smallest = min(point.size for point in listed)
        raise ValueError(f"size must be at least {smallest} bytes, the smallest of the points, got {size:g}")
    return max(fitting, key=lambda point: point.quality)
