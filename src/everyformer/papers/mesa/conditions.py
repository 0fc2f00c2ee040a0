"""Moments of the first value x_1, and the conditions on them that decide what training ends in (arXiv 2405.16845)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.papers.mesa.data import LAWS, Law, check_scale, first_values

Exponents = Sequence[int]


@dataclasses.dataclass(frozen=True)
class ExactMoment:
    """A law known by its moments: ``function(exponents)`` is E prod_j x_j^exponents[j], with ``dim`` exponents."""

    dim: int
    function: Callable[[Exponents], float]


@dataclasses.dataclass(frozen=True)
class Moments:
    """What the closed forms need of x_1: E x_j^2, k1 = E x_j^4, k2 = E x_j^6, k3 = sum over r != j of E x_j^2 x_r^4.

    Means over the coordinates j, which agree when the condition for emergence holds. ``exact`` tells whether they are
    the law's own or a sample's.
    """

    dim: int
    second: float
    k1: float
    k2: float
    k3: float
    exact: bool

    @property
    def defect(self) -> float:
        """1 - k1^2 / (k2 E x^2): the share of the next token that no product ab recovers, however long the context.

        Never negative (Cauchy-Schwarz for x and x^3), and zero if and only if x_j^2 is 0 or k2 / k1 almost surely.
        """
        return 1 - self.k1**2 / (self.k2 * self.second)


@dataclasses.dataclass(frozen=True)
class Report:
    """What :func:`moment_condition` found.

    ``verdict`` is ``holds`` or ``fails`` where exact moments prove it, ``not rejected`` or ``rejected`` where samples
    speak. ``moment`` is the one that speaks most against the condition, with its ``value`` (zero if the condition
    holds), ``standard_error`` (zero if exact) and, where it is about one, its ``coordinate``; ``tested`` of them were
    looked at.
    """

    level: str
    verdict: Literal["holds", "fails", "not rejected", "rejected"]
    moment: str
    value: float
    standard_error: float
    coordinate: int | None
    tested: int

    @property
    def holds(self) -> bool | None:
        """True or False where that is known; None where a sample did not reject it, which is no proof."""
        return {"holds": True, "fails": False, "rejected": False, "not rejected": None}[self.verdict]


@dataclasses.dataclass(frozen=True)
class _Finding:
    """An estimate that is zero under the condition, and the size that counts as rounding."""

    moment: str
    value: float
    error: float
    rounding: float
    coordinate: int | None = None

    @property
    def score(self) -> float:
        """Standard errors away from zero, or sizes of a rounding error where there is no other."""
        return 0.0 if abs(self.value) <= self.rounding else abs(self.value) / max(self.error, self.rounding)


def exact_moment(law: str, dim: int, scale: float = 1.0) -> ExactMoment:
    """The moments of a law in ``LAWS``, in closed form.

    Raises:
        ValueError: an unknown law, ``dim`` below 1 or ``scale`` not positive.
    """
    check_scale(scale)
    if law not in LAWS:
        raise ValueError(f"law must be one of {sorted(LAWS)}, got {law!r}")
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")

    def unit(exponents: Exponents, law: str = law) -> float:
        used = [power for power in exponents if power]
        if law == "ones" or not used:
            return 1.0
        if law == "mixed":
            return (unit(exponents, "gaussian") + unit(exponents, "signs")) / 2
        if any(power % 2 for power in used):
            return 0.0
        if law == "sparse":
            return 1 / dim if len(used) == 1 else 0.0
        one = {
            "gaussian": lambda power: math.prod(range(1, power, 2)),
            "signs": lambda power: 1.0,
            "uniform": lambda power: 1 / (power + 1),
        }
        return math.prod(one[law](power) for power in used)

    return ExactMoment(dim, lambda exponents: scale ** sum(exponents) * unit(exponents))


def moments(
    source: str | Law | Tensor | ExactMoment,
    dim: int | None = None,
    *,
    scale: float = 1.0,
    draws: int = 100_000,
    seed: int = 0,
) -> Moments:
    """The moments of x_1: exact for a name or an :class:`ExactMoment`, else averages over a sample.

    Args:
        source: a law's name, its exact moments, samples of x_1 of shape (samples, dim), or a function to draw them.
        dim: needed for a name or a function.
        scale: factor on what a name or a function gives.
        draws, seed: for a function.

    Raises:
        ValueError: samples that are complex, not finite or without a finite sixth moment, or ``dim`` missing.
    """
    found = _resolve(source, dim, scale, draws, seed)
    if isinstance(found, ExactMoment):
        second, k1, k2, k3 = (sum(k) / found.dim for k in zip(*_exact_constants(found), strict=True))
        return Moments(found.dim, second, k1, k2, k3, exact=True)
    second, k1, k2, k3 = (float(k.mean()) for k in _sample_constants(found))
    return Moments(found.shape[1], second, k1, k2, k3, exact=False)


def moment_condition(
    source: str | Law | Tensor | ExactMoment,
    level: Literal["emergence", "recovery"] = "emergence",
    dim: int | None = None,
    *,
    scale: float = 1.0,
    draws: int = 100_000,
    seed: int = 0,
    risk: float = 0.01,
) -> Report:
    """Whether x_1 meets the condition under which training ends in the mesa-optimiser, or the one for recovery.

    ``emergence``: every mixed moment of two to four different coordinates in which one of them appears to the power
    one is zero, and k1, k2, k3 (see :class:`Moments`) are the same for every coordinate. Of the mixed moments, those of
    degree four and six enter the loss and are looked at. ``recovery``: besides, x_j^2 is 0 or one and the same c^2
    almost surely, that is k1^2 = k2 E x^2, so that the learner forecasts the next token exactly as the context grows.

    A name or an :class:`ExactMoment` gives a proof. Samples can only reject, here with probability at most ``risk``
    where the condition holds (normal approximation, Bonferroni over all moments); the rest of the arguments and the
    errors are those of :func:`moments`.
    """
    if level not in ("emergence", "recovery"):
        raise ValueError(f"level must be 'emergence' or 'recovery', got {level!r}")
    if not 0 < risk < 1:
        raise ValueError(f"risk must be between 0 and 1, got {risk}")
    found = _resolve(source, dim, scale, draws, seed)
    exact = isinstance(found, ExactMoment)
    findings = list(_exact_findings(found) if isinstance(found, ExactMoment) else _sample_findings(found))
    if level == "recovery":
        findings.append(_recovery_finding(found))
    worst = max(findings, key=lambda finding: finding.score)
    limit = 0.0 if exact else NormalDist().inv_cdf(1 - risk / (2 * len(findings)))
    against = worst.score > limit
    verdict: Literal["holds", "fails", "not rejected", "rejected"]
    verdict = ("fails" if against else "holds") if exact else ("rejected" if against else "not rejected")
    return Report(level, verdict, worst.moment, worst.value, worst.error, worst.coordinate, len(findings))


def _resolve(
    source: str | Law | Tensor | ExactMoment, dim: int | None, scale: float, draws: int, seed: int
) -> ExactMoment | Float[Tensor, "samples dim"]:
    if isinstance(source, ExactMoment):
        return source
    if isinstance(source, Tensor):
        return _checked(source)
    if dim is None:
        raise ValueError("dim must be given with a law's name or function")
    if isinstance(source, str):
        return exact_moment(source, dim, scale)
    return _checked(first_values(source, dim, draws, torch.Generator().manual_seed(seed), scale))


def _checked(samples: Tensor) -> Float[Tensor, "samples dim"]:
    if samples.ndim != 2 or len(samples) < 2:
        raise ValueError(
            f"samples must have shape (samples, dim) with two samples at least, got {tuple(samples.shape)}"
        )
    if samples.is_complex():
        raise ValueError(f"samples of x_1 must be real, got {samples.dtype}")
    samples = samples.double()
    if not (samples**6).mean().isfinite():
        raise ValueError("samples of x_1 must have a finite sixth moment, got nan or infinite values")
    return samples


def _exponents(dim: int, powers: dict[int, int]) -> list[int]:
    return [powers.get(j, 0) for j in range(dim)]


def _exact_constants(moment: ExactMoment) -> list[tuple[float, float, float, float]]:
    """(E x_j^2, k1, k2, k3) of every coordinate j."""
    dim = moment.dim

    def of(powers: dict[int, int]) -> float:
        return float(moment.function(_exponents(dim, powers)))

    return [
        (of({j: 2}), of({j: 4}), of({j: 6}), sum(of({j: 2, r: 4}) for r in range(dim) if r != j)) for j in range(dim)
    ]


def _sample_constants(x: Float[Tensor, "samples dim"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_j^2, x_j^4, x_j^6 and sum over r != j of x_j^2 x_r^4, before averaging over samples."""
    others = (x**4).sum(dim=1, keepdim=True) - x**4
    return x**2, x**4, x**6, x**2 * others


def _mixed_powers(dim: int) -> Iterator[dict[int, int]]:
    """Powers by coordinate: two to four coordinates, degree four or six, one of them to the power one."""
    for count in range(2, min(4, dim) + 1):
        for degree in (4, 6):
            for powers in itertools.product(range(1, degree), repeat=count):
                if sum(powers) == degree and 1 in powers:
                    for places in itertools.combinations(range(dim), count):
                        yield dict(zip(places, powers, strict=True))


def _name(powers: dict[int, int]) -> str:
    return "E " + " ".join(f"x_{j}" + (f"^{power}" if power > 1 else "") for j, power in powers.items())


def _exact_findings(moment: ExactMoment) -> Iterator[_Finding]:
    constants = _exact_constants(moment)
    size = max(k2 for _, _, k2, _ in constants) ** (1 / 6)
    for powers in _mixed_powers(moment.dim):
        value = float(moment.function(_exponents(moment.dim, powers)))
        yield _Finding(_name(powers), value, 0.0, 1e-12 * size ** sum(powers.values()))
    for name, index in (("k1", 1), ("k2", 2), ("k3", 3)):
        values = [row[index] for row in constants]
        mean = sum(values) / len(values)
        for j, value in enumerate(values):
            yield _Finding(f"{name} of coordinate {j} minus its mean", value - mean, 0.0, 1e-12 * abs(mean), j)


def _sample_findings(x: Float[Tensor, "samples dim"]) -> Iterator[_Finding]:
    powers_of = [x**power for power in range(6)]
    for powers in _mixed_powers(x.shape[1]):
        products = torch.stack([powers_of[power][:, j] for j, power in powers.items()]).prod(dim=0)
        yield _Finding(_name(powers), *_mean(products))
    for name, values in zip(("k1", "k2", "k3"), _sample_constants(x)[1:], strict=True):
        centred = values - values.mean(dim=1, keepdim=True)
        for j in range(x.shape[1]):
            yield _Finding(f"{name} of coordinate {j} minus its mean", *_mean(centred[:, j], values), coordinate=j)


def _mean(values: Tensor, scale: Tensor | None = None) -> tuple[float, float, float]:
    """Mean, its standard error, and the size below which it is rounding."""
    size = float((values if scale is None else scale).abs().mean())
    return float(values.mean()), float(values.std()) / math.sqrt(len(values)), 1e-12 * size


def _recovery_finding(found: ExactMoment | Tensor) -> _Finding:
    """The defect of :class:`Moments`, with a standard error by the delta method."""
    name = "1 - k1^2 / (k2 E x^2)"
    known = moments(found)
    if isinstance(found, ExactMoment):
        return _Finding(name, known.defect, 0.0, 1e-12)
    second, fourth, sixth, _ = (k.mean(dim=1) for k in _sample_constants(found))
    influence = 2 * fourth / known.k1 - sixth / known.k2 - second / known.second
    error = (1 - known.defect) * float(influence.std()) / math.sqrt(len(found))
    return _Finding(name, known.defect, error, 1e-6)  # draws in single precision have a defect of about 1e-13
