"""A map on a box as the construction sees it: checked, on the unit cube, with its slopes and its symmetry."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Map = Callable[[Tensor], Tensor]
Bound = float | Tensor


@dataclasses.dataclass(frozen=True)
class Target:
    """``f`` on the unit cube: flat points in, flat outputs in float64, with the shape and the values checked."""

    f: Map
    tokens: int
    dim: int
    out_dim: int
    low: Float[Tensor, "tokens dim"]
    high: Float[Tensor, "tokens dim"]

    @property
    def inputs(self) -> int:
        """Numbers in one sequence."""
        return self.tokens * self.dim

    @property
    def sides(self) -> Float[Tensor, " inputs"]:
        """Lengths of the box."""
        return (self.high - self.low).flatten()

    def sequences(self, unit: Float[Tensor, "points inputs"]) -> Float[Tensor, "points tokens dim"]:
        """Points of the unit cube as sequences in the box."""
        return self.low + (self.high - self.low) * unit.unflatten(1, (self.tokens, self.dim))

    def __call__(self, unit: Float[Tensor, "points inputs"]) -> Float[Tensor, "points outputs"]:
        return torch.cat([self._checked(part) for part in unit.split(2**16)])

    def answer(self, outputs: slice, unit: Float[Tensor, "points inputs"]) -> Float[Tensor, "points chosen"]:
        """Some of the outputs: those of one token."""
        return self(unit)[:, outputs]

    def _checked(self, unit: Tensor) -> Tensor:
        x = self.sequences(unit)
        with torch.no_grad():
            y = self.f(x)
        wanted = (len(x), self.tokens, self.out_dim)
        if not isinstance(y, Tensor) or tuple(y.shape) != wanted:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"f must map (points, tokens, dim) to (points, tokens, out_dim) = {wanted}, got {got}")
        finite = y.isfinite().flatten(1).all(-1)
        if not finite.all():
            raise ValueError(
                f"f must be finite on the domain, got {y[~finite][0].tolist()} at {x[~finite][0].tolist()}"
            )
        return y.double().flatten(1)


def target_of(f: Map, tokens: int, dim: int, out_dim: int, domain: tuple[Bound, Bound] = (0.0, 1.0)) -> Target:
    """Check the sizes and the box; raises ``ValueError`` that names what is wrong."""
    for name, value in (("tokens", tokens), ("dim", dim), ("out_dim", out_dim)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    try:
        low, high = (torch.as_tensor(edge, dtype=torch.float64).expand(tokens, dim) for edge in domain)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"domain must be (low, high), numbers or shaped like (tokens, dim), got {domain!r}") from error
    if not (low.isfinite().all() and high.isfinite().all() and (low < high).all()):
        raise ValueError(f"domain must be a box with low < high everywhere, got {domain!r}")
    return Target(f, tokens, dim, out_dim, low, high)


def scattered(points: int, inputs: int, seed: int = 0) -> Float[Tensor, "points inputs"]:
    """Low-discrepancy points of the unit cube, denser towards its border and some exactly on it."""
    spread = torch.quasirandom.SobolEngine(inputs, scramble=True, seed=seed).draw(points, dtype=torch.float64)
    return ((1 - 1.03 * torch.cos(math.pi * spread)) / 2).clamp(0, 1)


def lattice(inputs: int, points: int) -> Float[Tensor, "points inputs"]:
    """A regular grid with the corners, of at most ``points`` points; corners alone, drawn at random, where it is less."""
    if 2**inputs > points:
        return torch.randint(2, (points, inputs), generator=torch.Generator().manual_seed(0)).double()
    per_axis = int(points ** (1 / inputs) + 1e-9)
    return torch.cartesian_prod(*[torch.linspace(0, 1, per_axis, dtype=torch.float64)] * inputs).reshape(-1, inputs)


STEP = 1e-5  # of difference quotients: above the rounding of a float32 f, and seldom across a kink


def slopes(target: Target, points: int = 2048, step: float = STEP) -> tuple[Tensor, Tensor]:
    """Points in general position (none on a border, where ties are) and quotients (points, inputs, outputs)."""
    spread = torch.quasirandom.SobolEngine(target.inputs, scramble=True, seed=3).draw(points, dtype=torch.float64)
    x = (1 - torch.cos(math.pi * spread)) / 2 * (1 - step)
    here = target(x)
    ahead = [target(x + step * axis) for axis in torch.eye(target.inputs, dtype=torch.float64)]
    return x, torch.stack([(there - here) / step for there in ahead], 1)


def lipschitz_constant(target: Target, given: float | None, x: Tensor, quotients: Tensor) -> float:
    """L with max |f(x) - f(y)| <= L sum |x - y|: the given one, checked, or the largest seen plus a tenth."""
    per_unit = quotients.abs().amax(-1) / target.sides
    steepest = float(per_unit.max())
    if given is None:
        return 1.1 * steepest
    if not (math.isfinite(given) and given >= 0):
        raise ValueError(f"lipschitz must be a finite number of at least 0, got {given}")
    if steepest > given * (1 + 1e-6) + 1e-8:
        point, axis = divmod(int(per_unit.argmax()), target.inputs)
        other = x[point].clone()
        other[axis] += STEP
        pair = target.sequences(torch.stack([x[point], other])).tolist()
        raise ValueError(f"lipschitz is {given}, but f has slope {steepest:.4g} between {pair[0]} and {pair[1]}")
    return given


def asymmetry(
    f: Map, tokens: int, dim: int, out_dim: int, domain: tuple[Bound, Bound] = (0.0, 1.0), points: int = 4096
) -> tuple[float, Float[Tensor, "2 tokens dim"]]:
    """The largest max |f(P x) - P f(x)| over sampled x and permutations P of tokens, and that pair (x, P x).

    A layer without positions is equivariant, so its error at one of the two is at least half of it. Permuted points must
    stay in the box: all tokens need the same one, or the answer is infinite.
    """
    target = target_of(f, tokens, dim, out_dim, domain)
    x = scattered(points, target.inputs)
    if not ((target.low == target.low[0]).all() and (target.high == target.high[0]).all()):
        return math.inf, target.sequences(x[:2])
    worst, pair = 0.0, x[:2]
    here = target(x).unflatten(1, (tokens, out_dim))
    swaps = [(i, j) for i in range(tokens) for j in range(i)]
    for i, j in swaps:  # swaps generate all permutations
        order = list(range(tokens))
        order[i], order[j] = j, i
        moved = x.unflatten(1, (tokens, dim))[:, order].flatten(1)
        gap = (target(moved).unflatten(1, (tokens, out_dim)) - here[:, order]).abs().flatten(1).amax(-1)
        if float(gap.max()) > worst:
            at = gap.argmax()
            worst, pair = float(gap[at]), torch.stack([x[at], moved[at]])
    return worst, target.sequences(pair)


def symmetry(target: Target) -> Literal["shared", "relative"] | None:
    """Whether all outputs are one function, or turn with the sequence, on samples; then one network serves all tokens."""
    if target.tokens == 1:
        return "shared"
    x = scattered(512, target.inputs)
    y = target(x).unflatten(1, (target.tokens, target.out_dim))
    close = 1e-9 * max(1.0, float(y.abs().max()))
    if float((y - y[:, :1]).abs().max()) <= close:
        return "shared"
    if (target.low == target.low[0]).all() and (target.high == target.high[0]).all():
        turned = target(x.unflatten(1, (target.tokens, target.dim)).roll(-1, 1).flatten(1)).unflatten(1, y.shape[1:])
        if float((turned - y.roll(-1, 1)).abs().max()) <= close:
            return "relative"
    return None
