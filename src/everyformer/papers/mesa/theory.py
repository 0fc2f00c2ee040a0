"""Closed forms of what training ends in: the limit of ab, and the flow of (a, b) towards it (arXiv 2405.16845)."""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.papers.mesa.conditions import Moments
from everyformer.papers.mesa.model import check_start


def mean_reciprocal(length: int) -> float:
    """H = mean of 1 / (t - 1) over t = 2 .. length - 1, the weight of the other coordinates; ln T / T for long T.

    Raises:
        ValueError: ``length`` below 3.
    """
    if length < 3:
        raise ValueError(f"length must be at least 3, got {length}")
    return math.fsum(1 / pairs for pairs in range(1, length - 1)) / (length - 2)


def curvature(moments: Moments, length: int) -> float:
    """k2 + k3 H: the second derivative, per coordinate and step, of the expected loss in p = ab."""
    return moments.k2 + moments.k3 * mean_reciprocal(length)


def limit_product(moments: Moments, length: int | None = None) -> float:
    """The product ab in which training on sequences of ``length`` ends: k1 / (k2 + k3 H); without a length, k1 / k2.

    Derivation. With W_KQ and W_PV zero outside their two multiples of I, x_{i,j} = l_j^(i-1) x_j and |l_j| = 1,

        y_{t,j} = p / (t-1) * sum_r x_j x_r^2 sum_{i=2..t} l_j^(i-1) l_r^(t-i+1),    p = ab.

    For r = j all t - 1 terms are l_j^t: together p x_j^3 l_j^t, in phase with the truth x_{t+1,j} = l_j^t x_j. For
    r != j the terms are different monomials in the phases, hence orthonormal on average, and none of them is l_j^t. So

        E |y_{t,j} - x_{t+1,j}|^2 / 2 = (p^2 (k2 + k3 / (t-1)) - 2 p k1 + E x_j^2) / 2.

    Its sum over t = 2 .. T-1 is least at the p above, with H the mean of 1 / (t-1). The condition for emergence makes
    the gradient of every other entry of W_KQ and W_PV vanish there and along the way.

    Raises:
        ValueError: ``length`` below 3.
    """
    return moments.k1 / (moments.k2 if length is None else curvature(moments, length))


def limit_weights(a: float, b: float, product: float) -> tuple[float, float]:
    """(a, b) in which the flow from ``a``, ``b`` ends: its product is ``product``, and a^2 - b^2 is what it was.

    Raises:
        ValueError: ``a`` or ``b`` not positive.
    """
    check_start(a, b)
    difference = a * a - b * b
    # The larger of the two first: the other one's root would cancel.
    large = math.sqrt((abs(difference) + math.hypot(difference, 2 * product)) / 2)
    return (large, product / large) if difference >= 0 else (product / large, large)


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """A path of (a, b) in time; time counts as learning rate times steps of gradient descent on the layer's loss."""

    time: Float[Tensor, "steps"]
    a: Float[Tensor, "steps"]
    b: Float[Tensor, "steps"]

    @property
    def product(self) -> Float[Tensor, "steps"]:
        """ab along the path."""
        return self.a * self.b

    @property
    def difference(self) -> Float[Tensor, "steps"]:
        """a^2 - b^2 along the path, which the flow conserves."""
        return self.a**2 - self.b**2


def flow(
    a0: float, b0: float, moments: Moments, length: int, *, time: float | None = None, steps: int = 200
) -> Trajectory:
    """Gradient flow of (a, b) on the expected loss, by Runge-Kutta of order four in double precision.

    The loss depends on p = ab alone, so da/dt = -b g and db/dt = -a g with g = (T - 2) ((k2 + k3 H) p - k1) for each
    entry of the diagonals; hence a^2 - b^2 is conserved, and p ends at :func:`limit_product` from any positive start.

    Args:
        a0, b0: the start, both positive.
        time: how long; by default until p is within about 1e-8 of its limit.
        steps: at least; more are taken where the flow is faster than they could follow.

    Raises:
        ValueError: ``a0`` or ``b0`` not positive, ``length`` below 3, ``time`` not positive or ``steps`` below 1.
    """
    check_start(a0, b0)
    stiffness, limit = (length - 2) * curvature(moments, length), limit_product(moments, length)
    end = math.hypot(*limit_weights(a0, b0, limit)) ** 2
    if time is None:
        escape = max(0.0, math.log(limit / (a0 * b0)))
        time = (20 / end + escape / limit) / stiffness
    if not time > 0:
        raise ValueError(f"time must be positive, got {time}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    fastest = stiffness * (max(end, a0 * a0 + b0 * b0) + abs(a0 * b0 - limit))
    steps = max(steps, math.ceil(4 * time * fastest))
    h = time / steps

    def field(a: float, b: float) -> tuple[float, float]:
        slope = stiffness * (a * b - limit)
        return -b * slope, -a * slope

    path = [(a0, b0)]
    for _ in range(steps):
        a, b = path[-1]
        k1 = field(a, b)
        k2 = field(a + h / 2 * k1[0], b + h / 2 * k1[1])
        k3 = field(a + h / 2 * k2[0], b + h / 2 * k2[1])
        k4 = field(a + h * k3[0], b + h * k3[1])
        path.append(
            (
                a + h / 6 * (k1[0] + 2 * k2[0] + 2 * k3[0] + k4[0]),
                b + h / 6 * (k1[1] + 2 * k2[1] + 2 * k3[1] + k4[1]),
            )
        )
    values = torch.tensor(path, dtype=torch.float64)
    return Trajectory(torch.linspace(0, time, steps + 1, dtype=torch.float64), values[:, 0], values[:, 1])
