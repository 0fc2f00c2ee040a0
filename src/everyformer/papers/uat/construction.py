"""From a map and a precision to the weights of a one-layer transformer, with a certificate or a refusal."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.papers.uat import ridge
from everyformer.papers.uat.error import CELLS, Part, certified, climbed, errors, evaluate, parts_of
from everyformer.papers.uat.model import Certificate, Gather, UniversalTransformer
from everyformer.papers.uat.ridge import Ridge, TooLarge
from everyformer.papers.uat.target import (
    Bound,
    Map,
    Target,
    asymmetry,
    lattice,
    lipschitz_constant,
    scattered,
    slopes,
    symmetry,
    target_of,
)

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
BLIND = 200  # columns of the system without positions


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
    gap = float((evaluate(model, target.sequences(x)).flatten(1) - exact).abs().max())
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


def widths(
    f: Map, eps_list: Iterable[float], tokens: int, dim: int, out_dim: int, **options: Any
) -> dict[float, tuple[int, float]]:
    """For each eps the width used and the width that the bound asks for; ``options`` are those of :func:`construct`."""
    built = {eps: construct(f, tokens, dim, out_dim, eps, **options) for eps in eps_list}
    return {eps: (model.width, model.asked_width) for eps, model in built.items()}
