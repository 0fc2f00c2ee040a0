"""Building and evaluating the closed form beside a plain loop over directions; there is no other code for this paper."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from everyformer.lab.bench import Case
from everyformer.papers.uat import ridge
from everyformer.papers.uat.construction import construct
from everyformer.papers.uat.maps import hard_row
from everyformer.papers.uat.target import scattered


def cases(quick: bool, device: str) -> Iterator[Case]:
    """The map with slopes at every border on two tokens: build at one degree, evaluate, and the solved construction."""
    degree, points = (12, 1000) if quick else (39, 4000)
    f = lambda x: hard_row(x.unflatten(1, (2, 1))).flatten(1)  # noqa: E731
    build = functools.partial(ridge.closed_form, f, 2, degree, 0.05, math.inf, 1)
    net, _ = build()
    note = f"degree {degree}, {len(net.offset):,} kinks, one core or two; no peer code exists"
    yield Case("build", build, {"loop over directions": functools.partial(build_by_loop, f, degree, 0.05)}, 10.0, note)
    x = scattered(points, 2)
    yield Case(
        f"evaluate {points:,} points", lambda: net(x), {"loop over directions": evaluate_by_loop(net, x)}, 1.0, note
    )
    solved = functools.partial(construct, hard_row, 2, 1, 1, 0.1, lipschitz=3.0, refine=True)
    closed = functools.partial(construct, hard_row, 2, 1, 1, 0.3 if quick else 0.1, lipschitz=3.0)
    yield Case("construct, solved", solved, {"closed form": closed}, 1.0, "both within the precision, both certified")


def build_by_loop(f: Callable[[Tensor], Tensor], degree: int, budget: float) -> list[tuple[Tensor, Tensor]]:
    """The same profiles, one direction after another: knots and values of each."""
    samples = degree + 2
    at = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    grid = torch.cartesian_prod(at, at)
    values = f(grid).reshape(samples, samples, -1)
    taps = torch.sin(math.pi * torch.arange(1, degree + 2, dtype=torch.float64) / samples)
    damping = [float((taps[: degree + 1 - m] * taps[m:]).sum() / taps.square().sum()) for m in range(degree + 1)]
    rows = [torch.cos(math.pi * k * at) * damping[k] * (2 if k else 1) / samples for k in range(degree + 1)]
    profiles: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}
    for a in range(degree + 1):
        inner = torch.einsum("g,gho->ho", rows[a], values)
        for b in range(degree + 1):
            common = math.gcd(a, b)
            if not common:
                continue
            amplitude = torch.einsum("h,ho->o", rows[b], inner)
            for sign in (1, -1) if a and b else (1,):
                entry = (common, amplitude / (2 if a and b else 1))
                profiles.setdefault((a // common, sign * b // common), []).append(entry)
    costs = {
        p: (abs(p[0]) + abs(p[1])) ** 2 * float(sum(v.abs() * (math.pi * m) ** 2 for m, v in waves).max()) / 8  # type: ignore[union-attr]
        for p, waves in profiles.items()
    }
    scale = math.sqrt(sum(cost ** (1 / 3) for cost in costs.values()) / budget)
    built = []
    for p, waves in profiles.items():
        pieces = max(1, math.ceil(costs[p] ** (1 / 3) * scale))
        low, high = sum(min(c, 0) for c in p), sum(max(c, 0) for c in p)
        knots = torch.linspace(low, high, pieces + 1, dtype=torch.float64)
        profile = torch.stack([torch.cos(math.pi * m * knots)[:, None] * v for m, v in waves]).sum(0)
        built.append((knots, profile))
    return built


def evaluate_by_loop(net: ridge.Ridge, x: Tensor) -> Callable[[], Tensor]:
    """The same sum, one direction after another."""
    directions, group = net.weight.unique(dim=0, return_inverse=True)
    members = [(group == i).nonzero().squeeze(-1) for i in range(len(directions))]

    def run() -> Tensor:
        total = x @ net.linear + net.constant
        for direction, chosen in zip(directions, members, strict=True):
            total = total + ((x @ direction)[:, None] - net.offset[chosen]).relu() @ net.out[chosen]
        return total

    return run
