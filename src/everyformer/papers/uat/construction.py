"""From a map and a precision to the weights of a one-layer transformer, with a certificate or a refusal."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.papers.uat import ridge
from everyformer.papers.uat.model import Certificate, Gather, UniversalTransformer
from everyformer.papers.uat.ridge import Ridge, TooLarge

if TYPE_CHECKING:
    from everyformer.papers.uat.contrast import HardPartition

Map = Callable[[Tensor], Tensor]
Bound = float | Tensor
PIECES = (
    2,
    4,
    6,
    8,
    12,
    16,
    24,
    32,
    48,
    64,
    128,
    256,
    512,
)  # even, so that a kink through the middle of the box falls on a knot
DIRECTIONS, COLUMNS = 96, 2048  # of the largest system that is tried
CELLS = 2**20  # of the covering that certifies
BLIND = 200  # columns of the system without positions


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


# --- the bound between the points ------------------------------------------------------------------------------------


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


# --- construct -------------------------------------------------------------------------------------------------------


def construct(
    f: Map,
    tokens: int,
    dim: int,
    out_dim: int,
    eps: float,
    lipschitz: float | None = None,
    positions: bool = True,
    refine: bool = False,
    domain: tuple[Bound, Bound] = (0.0, 1.0),
    memory: int = 2**30,
    dtype: torch.dtype = torch.float32,
) -> UniversalTransformer:
    """The one-layer transformer that stays within ``eps`` of ``f`` on a box, without training (after arXiv 2507.10581).

    Args:
        f: (points, tokens, dim) to (points, tokens, out_dim), float64, any continuous map.
        lipschitz: L with max |f(x) - f(y)| <= L sum |x - y|; estimated from samples when not given.
        positions: without them the layer is equivariant; warns with a witness when ``f`` is not, and does its best.
        refine: ``False`` writes the damped cosine expansion, proved by L alone; ``True`` solves one linear system on few
            directions, far narrower, and certifies it afterwards.
        domain: (low, high), numbers or tensors that broadcast to (tokens, dim).
        memory: bytes that samples, systems and weights may take.

    Raises:
        TooLarge: a ``ValueError`` with the width and the bytes it would need, before they are allocated.
        ValueError: what is wrong with ``eps``, ``domain``, ``f`` or ``lipschitz``.
    """
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be a positive number, got {eps}")
    target = target_of(f, tokens, dim, out_dim, domain)
    if 8 * 2048 * target.inputs * (target.inputs + tokens * out_dim) > memory:
        asked = 3.0 ** min(target.inputs, 600)
        raise TooLarge(f"{target.inputs} inputs are more than the memory allowed", asked, 8 * asked * target.inputs)
    x, quotients = slopes(target)
    constant = lipschitz_constant(target, lipschitz, x, quotients)
    origin: Literal["given", "estimated"] = "estimated" if lipschitz is None else "given"
    if not positions:
        return _without_positions(target, eps, constant, origin, memory, dtype)
    kind = symmetry(target)
    gather: Gather = "relative" if kind == "relative" else "absolute"
    count = 1 if kind else tokens
    asked = count * ridge.asked_width(constant, target.sides, eps)
    build = _solved if refine else _closed
    nets, certificate = build(target, kind, quotients, eps, constant, origin, memory, asked)
    width = sum(net.width for net in nets)
    model = UniversalTransformer(tokens, dim, out_dim, width, gather, (target.low, target.high), dtype)
    model.write_attention()
    model.write_feed_forward(nets)
    return _finished(model, target, parts_of(target, nets, kind), certificate, asked)


def _finished(
    model: UniversalTransformer, target: Target, parts: Sequence[Part], certificate: Certificate, asked: float
) -> UniversalTransformer:
    """Measure how far the module is from the ridge functions that its weights were rounded from."""
    x = scattered(512, target.inputs, seed=1)
    exact = torch.cat([part.net(part.turned(x)) for part in parts], dim=1)
    gap = float((_evaluate(model, target.sequences(x)).flatten(1) - exact).abs().max())
    model.certificate = dataclasses.replace(certificate, rounding=gap)
    model.asked_width = asked
    return model.eval()


def _bytes_each(target: Target) -> int:
    """Bytes of one hidden neuron: in float64 as a ridge function, and in the module."""
    return 8 * (target.inputs + target.out_dim + 1) + 8 * (3 * target.inputs + 2 * target.tokens + target.out_dim)


def _closed(
    target: Target,
    kind: str | None,
    quotients: Tensor,
    eps: float,
    constant: float,
    origin: Any,
    memory: int,
    asked: float,
) -> tuple[list[Ridge], Certificate]:
    k = ridge.degree(constant, target.sides, eps)
    each = _bytes_each(target)
    needed = ridge.closed_form_bytes(target.inputs, target.out_dim, k)
    if needed > memory:
        raise TooLarge(f"eps={eps} with lipschitz={constant:.3g} needs more memory than {memory:,} bytes "
                       "(raise memory, or try refine=True)", asked, max(needed, asked * each))  # fmt: skip
    cut = ridge.truncation(constant, target.sides, k)
    budget = min(eps - cut, (1 - ridge.TRUNCATION) * eps) * 0.95  # a twentieth for pruning and rounding
    count = 1 if kind else target.tokens
    nets, cost = [], 0.0
    for i in range(count):
        outputs = slice(i * target.out_dim, (i + 1) * target.out_dim)
        net, knots = ridge.closed_form(
            partial(target.answer, outputs), target.inputs, k, budget, memory / each / count, each
        )
        net, dropped = net.pruned(0.01 * eps * (1 - ridge.TRUNCATION))
        nets.append(net)
        cost = max(cost, knots + dropped)
    return nets, Certificate(cut, cost, 0.0, "proved", origin, constant)


def _solved(
    target: Target,
    kind: str | None,
    quotients: Tensor,
    eps: float,
    constant: float,
    origin: Any,
    memory: int,
    asked: float,
) -> tuple[list[Ridge], Certificate]:
    nets, seen, total, proved = [], 0.0, 0.0, True
    for i in range(1 if kind else target.tokens):
        chosen = slice(i * target.out_dim, (i + 1) * target.out_dim)
        net, at_points, bound = _narrowest(target, chosen, quotients[:, :, chosen], eps, constant, memory)
        nets.append(net)
        seen, total, proved = max(seen, at_points), max(total, bound), proved and math.isfinite(bound)
    if proved:
        return nets, Certificate(seen, total - seen, 0.0, "grid", origin, constant)
    return nets, Certificate(seen, 0.0, 0.0, "sampled", origin, constant)


def candidates(still: Float[Tensor, "inputs still"]) -> list[tuple[Tensor, int]]:
    """Directions and pieces to try, narrowest first."""
    pairs = [(directions, pieces) for directions in ridge.shells(still, DIRECTIONS) for pieces in PIECES]
    pairs = [
        pair for pair in pairs if len(pair[0]) * (pair[1] + 1) <= COLUMNS and (len(pair[0]) or pair[1] == PIECES[0])
    ]
    return sorted(pairs, key=lambda pair: len(pair[0]) * (pair[1] - 1))


def _narrowest(
    target: Target, outputs: slice, quotients: Tensor, eps: float, constant: float, memory: int
) -> tuple[Ridge, float, float]:
    """The first candidate within ``eps``: its largest error at points, and its bound (infinite beyond three inputs)."""
    check = torch.cat([lattice(target.inputs, 40_000), scattered(10_000, target.inputs, seed=2)])
    tried: list[tuple[int, float]] = []
    for directions, pieces in candidates(ridge.active(quotients)):
        columns = len(directions) * (pieces + 1)
        points = max(2000, 4 * columns)
        needed = ridge.solve_bytes(points, len(directions), pieces, target.out_dim)
        if needed > memory:
            break
        x = scattered(points, target.inputs)
        y = target.answer(outputs, x)
        net = ridge.solve(x, y, directions, pieces)
        seen = float((net(x) - y).abs().max())
        if seen > 0.95 * eps:
            tried.append((columns, seen))
            continue
        net, _ = net.pruned(0.01 * eps)
        parts = [Part(net, outputs, 0, target.dim)]
        seen = float(errors(target, parts, check).max())
        tried.append((columns, seen))
        if seen > 0.95 * eps:
            continue
        found, bound = seen, math.inf
        if target.inputs <= 3:
            cells = CELLS if target.inputs < 3 else CELLS // max(8, net.width // 2)
            found, bound = certified(target, parts, constant, 0.999 * eps, cells)
        seen = max(seen, found)
        if math.isfinite(bound):
            return net, seen, bound
        if target.inputs > 2 and seen <= 0.95 * eps:
            seen = max(seen, climbed(partial(errors, target, parts), check, 128))
            if seen <= 0.95 * eps:
                return net, seen, bound
    raise _refusal(tried, target.inputs, eps, memory)


def _refusal(tried: list[tuple[int, float]], inputs: int, eps: float, memory: int) -> TooLarge:
    """The refusal, with the width at which the best candidate would reach ``eps`` at the Lipschitz rate eps^-inputs."""
    width, error = min(tried, key=lambda pair: pair[1]) if tried else (1, eps)
    needed = max(1, width) * max(1.0, error / eps) ** inputs
    return TooLarge(f"eps={eps} needs more memory than {memory:,} bytes or more than {COLUMNS:,} columns",
                    needed, 24 * needed**2)  # fmt: skip


def _without_positions(
    target: Target, eps: float, constant: float, origin: Any, memory: int, dtype: torch.dtype
) -> UniversalTransformer:
    """The best layer that sees its own token and the mean of all: equivariant, whatever the weights."""
    gap, (x, moved) = asymmetry(target.f, target.tokens, target.dim, target.out_dim, (target.low, target.high))
    if not math.isfinite(gap):
        raise ValueError("domain must be the same box for every token when positions=False")
    equivariant = gap <= 1e-9
    if not equivariant:
        warnings.warn(
            f"f is not equivariant: its answers at {x.tolist()} and the permuted {moved.tolist()} differ by {gap:.3g}, "
            f"so that a layer without positions errs by at least {gap / 2:.3g}", stacklevel=3,
        )  # fmt: skip
    points = torch.cat([scattered(2000, target.inputs), lattice(target.inputs, 2000)])
    y = target(points).reshape(-1, target.out_dim)
    own = points.unflatten(1, (target.tokens, target.dim))
    seen = torch.cat([own, own.mean(1, keepdim=True).expand_as(own)], -1).flatten(0, 1)
    sizes = [
        (directions, pieces)
        for directions, pieces in candidates(torch.zeros(2 * target.dim, 0, dtype=torch.float64))
        if len(directions) * (pieces + 1) <= BLIND
        and ridge.solve_bytes(len(seen), len(directions), pieces, target.out_dim) <= memory
    ]
    best, error = None, math.inf
    for directions, pieces in sizes if equivariant else sizes[-1:]:
        best = ridge.solve(seen, y, directions, pieces)
        error = float((best(seen) - y).abs().max())
        if error <= 0.9 * eps:
            break
    if best is None or (equivariant and error > eps):
        raise TooLarge(f"eps={eps}: a token and the mean of all tokens do not determine this map within {BLIND} columns "
                       "(use positions)", BLIND, 8 * BLIND * len(seen))  # fmt: skip
    box = (target.low, target.high)
    model = UniversalTransformer(target.tokens, target.dim, target.out_dim, best.width, "mean", box, dtype)
    model.write_attention()
    model.write_feed_forward([best])
    model.certificate = Certificate(error, 0.0, 0.0, "sampled", origin, constant)
    model.asked_width = math.inf if not equivariant else ridge.asked_width(constant, target.sides, eps)
    return model.eval()


# --- measuring -------------------------------------------------------------------------------------------------------


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
def _evaluate(model: torch.nn.Module, x: Float[Tensor, "points tokens dim"]) -> Float[Tensor, "points tokens out"]:
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
        answers = _evaluate(model, target.sequences(unit)).flatten(1)
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


def widths(
    f: Map, eps_list: Iterable[float], tokens: int, dim: int, out_dim: int, **options: Any
) -> dict[float, tuple[int, float]]:
    """For each eps the width used and the width that the bound asks for; ``options`` are those of :func:`construct`."""
    built = {eps: construct(f, tokens, dim, out_dim, eps, **options) for eps in eps_list}
    return {eps: (model.width, model.asked_width) for eps, model in built.items()}
