"""How far a network is from a map: a bound over the whole box, and the largest error that can be found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.papers.uat.ridge import Ridge
from everyformer.papers.uat.target import Map, Target, lattice, target_of

if TYPE_CHECKING:
    from everyformer.papers.uat.contrast import HardPartition
    from everyformer.papers.uat.model import UniversalTransformer

CELLS = 2**20  # of the covering that certifies


@dataclasses.dataclass(frozen=True)
class Part:
    """The outputs (a slice) that one ridge function makes, from the sequence turned by ``shift`` tokens."""

    net: Ridge
    outputs: slice
    shift: int
    dim: int

    def turned(self, x: Float[Tensor, "points inputs"]) -> Float[Tensor, "points inputs"]:
        """The sequence as this token's slots hold it."""
        return x.roll(-self.shift * self.dim, 1) if self.shift else x


def parts_of(target: Target, nets: list[Ridge], kind: str | None) -> list[Part]:
    """One part per token, whether each has a network of its own or all share one."""
    return [
        Part(nets[i if kind is None else 0], slice(i * target.out_dim, (i + 1) * target.out_dim),
             i if kind == "relative" else 0, target.dim)
        for i in range(target.tokens)
    ]  # fmt: skip


def errors(target: Target, parts: Sequence[Part], x: Float[Tensor, "points inputs"]) -> Float[Tensor, " points"]:
    """The largest error over tokens and channels at each point."""
    y = target(x)
    return torch.stack([(part.net(part.turned(x)) - y[:, part.outputs]).abs().amax(-1) for part in parts]).amax(0)


def certified(
    target: Target, parts: Sequence[Part], constant: float, epsilon: float, cells: int = CELLS
) -> tuple[float, float]:
    """The largest error seen at centres of cells and a bound over the whole box, by branch and bound.

    In a cell the error is at most the one at its centre plus half the side times, per axis, the Lipschitz constant of f
    and the network's slope: that of the centre and of whatever neurons switch inside the cell. Cells are split until all
    are within epsilon; the bound is infinite when ``cells`` do not suffice.
    """
    per_axis = max(1, int(4096 ** (1 / target.inputs)))
    half = 0.5 / per_axis
    axis = (torch.arange(per_axis, dtype=torch.float64) + 0.5) / per_axis
    centres = torch.cartesian_prod(*[axis] * target.inputs).reshape(-1, target.inputs)
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * target.inputs)
    corners = corners.reshape(-1, target.inputs)
    seen = bound = 0.0
    while len(centres):
        cells -= len(centres)
        if cells < 0 or seen > epsilon:
            return seen, math.inf
        values = target(centres)
        reach = torch.zeros(len(centres), dtype=torch.float64)
        for part in parts:
            error, slope = _error_and_slope(part, centres, values[:, part.outputs], half)
            seen = max(seen, float(error.max()))
            steepness = slope + constant * float(target.sides.sum())
            reach = torch.maximum(reach, (error + half * steepness).amax(-1))
        within = reach <= epsilon
        bound = max(bound, float(reach[within].max())) if within.any() else bound
        centres = (centres[~within][:, None] + half * corners).flatten(0, 1)
        half /= 2
    return seen, bound


def _error_and_slope(part: Part, x: Tensor, y: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """Error (points, outputs) at the centres, and the 1-norm of the steepest slope of the network in each cell."""
    net, found = part.net, []
    jump = torch.einsum("wd,wo->wdo", net.weight, net.out).flatten(1)
    span = half * net.weight.abs().sum(-1)
    for at, value in zip(x.split(4096), y.split(4096), strict=True):
        at = part.turned(at)
        before = at @ net.weight.T - net.offset
        error = (before.relu() @ net.out + at @ net.linear + net.constant - value).abs()
        slope = ((before > 0).double() @ jump + net.linear.flatten()).abs()
        slope += (before.abs() <= span).double() @ jump.abs()
        found.append((error, slope.unflatten(1, net.linear.shape).sum(1)))
    return torch.cat([error for error, _ in found]), torch.cat([slope for _, slope in found])


def climbed(error: Callable[[Tensor], Tensor], x: Float[Tensor, "points inputs"], starts: int) -> float:
    """The largest error after climbing, in the unit cube, from the worst of ``x`` along the sign of the gradient.

    The gradient is taken by differences, so that f may be any function.
    """
    found = error(x)
    x, height = x[found.topk(min(starts, len(x))).indices], found.topk(min(starts, len(x))).values
    axes = 1e-3 * torch.eye(x.shape[1], dtype=torch.float64)
    for step in torch.logspace(-1.5, -4, 24, dtype=torch.float64).tolist():
        around = torch.cat([(x[:, None] + axes).flatten(0, 1), (x[:, None] - axes).flatten(0, 1)]).clamp(0, 1)
        ahead, behind = error(around).reshape(2, len(x), -1)
        moved = (x + step * (ahead - behind).sign()).clamp(0, 1)
        there = error(moved)
        x, height = torch.where((there > height)[:, None], moved, x), torch.maximum(there, height)
    return float(height.max())


@torch.no_grad()
def evaluate(model: torch.nn.Module, x: Float[Tensor, "points tokens dim"]) -> Float[Tensor, "points tokens out"]:
    """The module's answers in float64, in pieces that fit the memory."""
    own = next(model.parameters())
    rows = max(1, 2**22 // max(1, getattr(model, "width", 1) * x.shape[1]))
    return torch.cat([model(part.to(own.device, own.dtype)).double().cpu() for part in x.split(rows)])


def sup_error(
    model: UniversalTransformer | HardPartition,
    f: Map,
    points: Literal["grid", "random", "adversarial"] | Float[Tensor, "points tokens dim"] = "adversarial",
    count: int = 10_000,
    seed: int = 0,
) -> float:
    """The largest |model(x) - f(x)| over tokens, channels and ``points`` of the model's box, or points of your own.

    ``"adversarial"`` climbs from the worst of ``count`` random points along the sign of the error's gradient, taken by
    differences so that ``f`` may be any function.
    """
    low, high = model.low.double().cpu(), model.high.double().cpu()
    target = target_of(f, model.tokens, model.dim, model.out_dim, (low, high))

    def error(unit: Tensor) -> Tensor:
        answers = evaluate(model, target.sequences(unit)).flatten(1)
        return (answers - target(unit)).abs().amax(-1)

    if isinstance(points, Tensor):
        return float(error(((points.double() - low) / (high - low)).flatten(1)).max())
    if points == "grid":
        return float(error(lattice(target.inputs, count)).max())
    if points not in ("random", "adversarial"):
        raise ValueError(f"points must be 'grid', 'random', 'adversarial' or a tensor, got {points!r}")
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, target.inputs, generator=generator, dtype=torch.float64)
    return float(error(x).max()) if points == "random" else climbed(error, x, 64)
