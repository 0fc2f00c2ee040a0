"""Ridge expansions on the unit cube: sums of one-dimensional piecewise linear functions of p·x, one per direction p.

A ReLU network with one hidden layer is exactly such a sum, so nothing here needs bumps, cells or sharp attention.
Two ways to one: :func:`closed_form` has an error bound before the function is looked at, :func:`solve` is a linear
least-squares problem that needs far fewer directions and is certified afterwards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

TRUNCATION = 0.8  # share of epsilon for the cosine expansion; the rest is for its piecewise linear pieces
CHUNK = 2**20  # numbers in one intermediate product of points and neurons


class TooLarge(ValueError):
    """A construction that was refused before it was allocated; ``width`` and ``bytes`` are what it would have needed."""

    def __init__(self, message: str, width: float, bytes: float) -> None:
        super().__init__(f"{message}: about {width:.3g} hidden neurons and {bytes:.3g} bytes")
        self.width, self.bytes = width, bytes


@dataclasses.dataclass
class Ridge:
    """x -> constant + linear·x + sum over neurons of out * relu(weight·x - offset), for x in the unit cube."""

    weight: Float[Tensor, "width inputs"]
    offset: Float[Tensor, " width"]
    out: Float[Tensor, "width outputs"]
    linear: Float[Tensor, "inputs outputs"]
    constant: Float[Tensor, " outputs"]

    @property
    def width(self) -> int:
        """Hidden neurons: the kinks, one always-on neuron per input for the linear part, one for the constant."""
        return len(self.offset) + len(self.linear) + 1

    def __call__(self, x: Float[Tensor, "points inputs"]) -> Float[Tensor, "points outputs"]:
        rows = max(1, CHUNK // max(1, len(self.offset)))
        kinks = [torch.addmm(-self.offset, part, self.weight.T).relu_() @ self.out for part in x.split(rows)]
        return torch.cat(kinks) + x @ self.linear + self.constant

    def outputs(self, chosen: slice) -> Ridge:
        """The same neurons with some of the outputs."""
        return dataclasses.replace(
            self, out=self.out[:, chosen], linear=self.linear[:, chosen], constant=self.constant[chosen]
        )

    def pruned(self, budget: float) -> tuple[Ridge, float]:
        """Without the neurons that matter least, and a bound (at most ``budget``) on what leaving them out changes."""
        reach = (self.weight.clamp(min=0).sum(-1) - self.offset).clamp(min=0)
        effect = self.out.abs().amax(-1) * reach
        order = effect.argsort()
        dropped = order[effect[order].cumsum(0) <= budget]
        kept = torch.ones(len(effect), dtype=torch.bool).index_fill(0, dropped, False)
        smaller = dataclasses.replace(self, weight=self.weight[kept], offset=self.offset[kept], out=self.out[kept])
        return smaller, float(effect[dropped].sum())


def interval(directions: Float[Tensor, "directions inputs"]) -> tuple[Tensor, Tensor]:
    """The smallest and largest p·x over the unit cube, for each direction p."""
    return directions.clamp(max=0).sum(-1), directions.clamp(min=0).sum(-1)


def from_profiles(
    directions: Float[Tensor, "directions inputs"], values: Float[Tensor, "directions knots outputs"]
) -> Ridge:
    """The network that interpolates ``values`` linearly at equally spaced knots of each direction's interval."""
    low, high = interval(directions)
    pieces = values.shape[1] - 1
    step = (high - low) / pieces
    slopes = values.diff(dim=1) / step[:, None, None]
    knots = low[:, None] + step[:, None] * torch.arange(1, pieces, dtype=values.dtype)
    return Ridge(
        weight=directions.repeat_interleave(pieces - 1, dim=0),
        offset=knots.flatten(),
        out=slopes.diff(dim=1).flatten(0, 1),
        linear=torch.einsum("qd,qo->do", directions, slopes[:, 0]),
        constant=(values[:, 0] - slopes[:, 0] * low[:, None]).sum(0),
    )


def joined(parts: list[Ridge]) -> Ridge:
    """The sum of several ridge functions."""
    stacked = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "offset", "out")}
    summed = {name: torch.stack([getattr(part, name) for part in parts]).sum(0) for name in ("linear", "constant")}
    return Ridge(**stacked, **summed)


# --- the closed form: damped cosines, then knots ---------------------------------------------------------------------


def degree(lipschitz: float, sides: Float[Tensor, " inputs"], epsilon: float) -> int:
    """The smallest K for which :func:`truncation` is within the cosine expansion's share of epsilon."""
    ratio = TRUNCATION * epsilon / max(lipschitz * float(sides.sum()), 1e-300)
    return 1 if ratio >= 1 else max(1, math.ceil(math.pi / (2 * math.asin(ratio)) - 2))


def truncation(lipschitz: float, sides: Float[Tensor, " inputs"], k: int) -> float:
    """A bound on the error of the damped cosine expansion of degree ``k`` of any function with this Lipschitz constant.

    The expansion averages the evenly reflected function with a positive kernel of mass one, so its error is at most
    L times the mean distance E|t| per axis, and E|t| <= sqrt((1 - E cos(pi t)) / 2) = sin(pi / (2 (k + 2))) for the
    Fejér-Korovkin kernel. Sampling at more than k/2 + 1 midpoints keeps both moments exactly, so that aliasing is
    inside the bound. ``lipschitz`` is for the 1-norm before the box with these sides became the unit cube.
    """
    return lipschitz * float(sides.sum()) * math.sin(math.pi / (2 * (k + 2)))


def frequencies(inputs: int, k: int) -> int:
    """How many directions the frequencies up to ``k`` have: primitive integer vectors up to sign, by Möbius inversion."""
    mobius = [0, 1] + [0] * (k - 1)
    for n in range(1, k + 1):
        for multiple in range(2 * n, k + 1, n):
            mobius[multiple] -= mobius[n]
    return sum(mobius[n] * ((2 * (k // n) + 1) ** inputs - 1) // 2 for n in range(1, k + 1))


def asked_width(lipschitz: float, sides: Float[Tensor, " inputs"], epsilon: float) -> float:
    """Neurons of :func:`closed_form` in the worst case over all functions with this Lipschitz constant.

    The knots cost at most Q sqrt(A / ((1 - TRUNCATION) epsilon)) + Q for Q directions, where A = pi²/8 sum |c_k| |k|_1²
    is bounded through Cauchy's inequality and the mean square of the gradient.
    """
    inputs = len(sides)
    k = degree(lipschitz, sides, epsilon)
    squares = float(inputs * k * (k + 1) * (2 * k + 1) / 6) * float(k + 1) ** (inputs - 1)  # sum over k of |k|²
    curvature = math.pi / 8 * inputs * lipschitz * float(sides.norm()) * math.sqrt(2**inputs * squares)
    count = frequencies(inputs, k)
    return count * (1 + math.sqrt(curvature / ((1 - TRUNCATION) * epsilon)))


def closed_form_bytes(inputs: int, outputs: int, k: int) -> int:
    """Memory of the samples, coefficients and frequencies that :func:`closed_form` holds at once."""
    return 8 * ((k + 2) ** inputs * 2 * outputs + (2 * k + 1) ** inputs * (outputs + 2 * inputs))


def closed_form(
    f: Callable[[Tensor], Tensor], inputs: int, k: int, budget: float, most: float, bytes_each: int
) -> tuple[Ridge, float]:
    """The damped cosine expansion of degree ``k`` as ridge functions with knots, and a bound on what the knots cost.

    A product of cosines is the mean of cos(pi w·x) over sign patterns; frequencies w = m p with one primitive p are one
    function of p·x. Linear interpolation with step h errs by at most h²/8 times the curvature.

    Raises:
        TooLarge: more than ``most`` neurons of ``bytes_each``; they are counted before they are made.
    """
    samples = k + 2
    points = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    grid = torch.cartesian_prod(*[points] * inputs).reshape(-1, inputs)
    taps = torch.sin(math.pi * torch.arange(1, k + 2, dtype=torch.float64) / (k + 2))
    damping = torch.stack([(taps[: k + 1 - m] * taps[m:]).sum() for m in range(k + 1)]) / taps.square().sum()
    cosines = torch.cos(math.pi * torch.arange(k + 1, dtype=torch.float64)[:, None] * points) * damping[:, None]
    cosines *= torch.full((k + 1, 1), 2.0 / samples, dtype=torch.float64).index_fill_(0, torch.tensor(0), 1 / samples)
    coefficients = f(grid).reshape(*[samples] * inputs, -1)
    for axis in range(inputs):
        coefficients = torch.tensordot(cosines, coefficients, dims=([1], [axis])).movedim(0, axis)

    span = torch.arange(-k, k + 1)
    w = torch.cartesian_prod(*[span] * inputs).reshape(-1, inputs)
    w = w[len(w) // 2 + 1 :]  # one of each pair w, -w: the lexicographic order is symmetric about zero
    amplitude = coefficients[tuple(w.abs().T)] / 2.0 ** ((w != 0).sum(-1, keepdim=True) - 1)
    multiple = w[:, 0]
    for axis in range(1, inputs):
        multiple = torch.gcd(multiple, w[:, axis])
    multiple = multiple.abs()
    primitive, group = (w // multiple[:, None]).unique(dim=0, return_inverse=True)
    directions = primitive.double()

    curvature = torch.zeros(len(directions), amplitude.shape[1], dtype=torch.float64)
    curvature.index_add_(0, group, amplitude.abs() * (math.pi * multiple[:, None]) ** 2)
    cost = directions.abs().sum(-1) ** 2 * curvature.amax(-1) / 8
    pieces = (cost ** (1 / 3) * math.sqrt(float((cost ** (1 / 3)).sum()) / budget)).ceil().clamp(min=1).long()
    total = int((pieces - 1).sum())
    if total > most:
        raise TooLarge("eps needs more than the memory allowed", total, total * bytes_each)
    low, high = interval(directions)
    parts = []
    for count in pieces.unique().tolist():
        chosen = (pieces == count).nonzero().squeeze(-1)
        entries = torch.isin(group, chosen).nonzero().squeeze(-1)
        place = torch.searchsorted(chosen, group[entries])
        at = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        knots = low[chosen, None] + (high - low)[chosen, None] * at
        waves = torch.cos(math.pi * multiple[entries, None] * knots[place])
        values = torch.zeros(len(chosen), count + 1, amplitude.shape[1], dtype=torch.float64)
        values.index_add_(0, place, waves[:, :, None] * amplitude[entries, None])
        parts.append(from_profiles(directions[chosen], values))
    ridge = joined(parts)
    ridge.constant += coefficients[(0,) * inputs]
    return ridge, float((cost / pieces**2).sum())


# --- the linear solve: few directions, best weights ------------------------------------------------------------------


def active(slopes: Float[Tensor, "points inputs outputs"]) -> Float[Tensor, "inputs still"]:
    """Orthonormal directions along which the slopes never change: there the map is affine and needs no neurons."""
    spread = (slopes - slopes.mean(0)).movedim(1, 0).flatten(1)
    values, vectors = torch.linalg.eigh(spread @ spread.T / spread.shape[1])
    return vectors[:, values <= 1e-8 * max(1.0, float(slopes.square().mean()))]


def shells(still: Float[Tensor, "inputs still"], most: int) -> list[Float[Tensor, "directions inputs"]]:
    """Growing sets of at most ``most`` directions: primitive integer vectors up to sign, by length, orthogonal to ``still``.

    Starts with the empty set, which leaves the affine part.
    """
    inputs, rank = len(still), len(still) - still.shape[1]
    moving = (1 - still.square().sum(-1) > 1e-6).nonzero().squeeze(-1)  # coordinates that matter at all
    found = [torch.zeros(0, inputs, dtype=torch.float64)]
    reach = 1
    while rank and len(found[-1]) < most and (2 * reach + 1) ** len(moving) <= 2**18:
        w = torch.cartesian_prod(*[torch.arange(-reach, reach + 1)] * len(moving)).reshape(-1, len(moving))
        w = w[len(w) // 2 + 1 :]
        gcd = w[:, 0]
        for axis in range(1, len(moving)):
            gcd = torch.gcd(gcd, w[:, axis])
        w = w[(gcd.abs() == 1) & (w.square().sum(-1) < (reach + 1) ** 2)].double()  # beyond, some are missing
        w = torch.zeros(len(w), inputs, dtype=torch.float64).index_copy_(1, moving, w)
        w = w[(w @ still).abs().sum(-1) < 1e-3]
        lengths = w.square().sum(-1)
        sets = [w[lengths <= length] for length in lengths.unique().tolist()]
        spanning = [chosen for chosen in sets if len(chosen) <= most and torch.linalg.matrix_rank(chosen) == rank]
        found = found[:1] + spanning
        if rank == 1 and spanning:
            break
        reach *= 2
    if rank and len(found) == 1 and still.shape[1]:  # no integer vectors span that space
        return shells(still[:, :0], most)
    return found


def hats(x: Float[Tensor, "points inputs"], directions: Float[Tensor, "directions inputs"], pieces: int) -> Tensor:
    """The design matrix (points, directions * knots): piecewise linear hat functions of p·x."""
    low, high = interval(directions)
    at = ((x @ directions.T - low) / (high - low)).clamp(0, 1) * pieces
    cell = at.floor().clamp(max=pieces - 1)
    first = (cell + torch.arange(len(directions)) * (pieces + 1)).long()
    design = torch.zeros(len(x), len(directions) * (pieces + 1), dtype=x.dtype)
    design.scatter_(1, first, 1 - (at - cell))
    return design.scatter_(1, first + 1, at - cell)


def solve_bytes(points: int, directions: int, pieces: int, outputs: int) -> int:
    """Memory of :func:`solve`: the design matrix, its square and the factor."""
    columns = directions * (pieces + 1)
    return 8 * (points * (columns + 4 * directions + outputs) + 3 * columns**2)


def solve(
    x: Float[Tensor, "points inputs"],
    y: Float[Tensor, "points outputs"],
    directions: Float[Tensor, "directions inputs"],
    pieces: int,
    roughness: float = 1e-6,
) -> Ridge:
    """The affine part and the profiles on equally spaced knots that fit ``y`` best in the mean square: one linear solve.

    A slight penalty on kinks makes the answer unique and carries profiles on where no point lies.
    """
    count, inputs = len(directions), directions.shape[1]
    design = torch.cat([hats(x, directions, pieces), x - 0.5, torch.ones_like(x[:, :1])], dim=1)
    bend = torch.eye(pieces + 1, dtype=x.dtype).diff(n=2, dim=0)
    gram = design.T @ design
    penalty = roughness * bend.T @ bend + 1e-3 * roughness * torch.eye(pieces + 1, dtype=x.dtype)
    for start in range(0, count * (pieces + 1), pieces + 1):
        gram[start : start + pieces + 1, start : start + pieces + 1] += len(x) * penalty
    values = torch.cholesky_solve(design.T @ y, torch.linalg.cholesky(gram))
    profiles, affine = values[: -inputs - 1], values[-inputs - 1 :]
    ridge = from_profiles(directions, profiles.reshape(count, pieces + 1, y.shape[1]))
    ridge.linear += affine[:-1]
    ridge.constant += affine[-1] - 0.5 * affine[:-1].sum(0)
    return ridge
