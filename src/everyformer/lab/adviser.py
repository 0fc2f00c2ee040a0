"""Which token mixer for so many tokens, so much memory and so little time: by what was measured, and nothing else."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from everyformer import mixers
from everyformer.lab.growth import exponent
from everyformer.lab.mixer_table import MEASURE, NO_ROOM, STEPS, Speed, Step, Table

Order = Literal["accuracy", "latency", "memory"]
Place = Literal["measured", "between", "beyond", "below"]
ORDERS: tuple[str, ...] = get_args(Order)
MOST_TOKENS = 10**8
LEFT_TO_RIGHT = "chars"  # the task that only causal mixers can do
_BYTES = {"B": 1.0}
for _power, _letter in enumerate("KMGT", start=1):
    _BYTES |= {f"{_letter}B": 1000.0**_power, f"{_letter}IB": 1024.0**_power}
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is asked for; ``memory`` in bytes and ``latency`` in seconds, none for any.

    Raises:
        ValueError: a number, step or order that cannot be.
    """

    tokens: int
    memory: float | None = None
    latency: float | None = None
    causal: bool = False
    step: Step = "forward"
    order: Order = "accuracy"

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise ValueError(f"tokens must be 1 to {MOST_TOKENS:,}, got {self.tokens}")
        if self.step not in STEPS:
            raise ValueError(f"step must be one of {', '.join(STEPS)}, got {self.step!r}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")
        if self.step == "token" and not self.causal:
            raise ValueError("step token needs causal: only who reads from left to right writes token by token")


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A predicted figure, and where its length lies among those measured; one ``below`` them is at most ``value``."""

    value: float
    place: Place


@dataclasses.dataclass(frozen=True)
class Advice:
    """One mixer under a wish.

    Attributes:
        seconds, bytes: of the step; none where it was not measured.
        exponent: of the tokens in the step's time, fitted (:func:`exponents`); none where too few lengths were measured.
        accuracies: per cent right by task.
        quality: mean over the tasks of how far from chance to all right, 0 to 1; none where not all were run.
        against: what speaks against it; fits where this is empty.
        stopped: the shortest length, up to the one asked for, at which the step was not run, with the reason; or none.
        best: whether no other that fits is both faster and better.
    """

    card: mixers.Card
    seconds: Predicted | None
    bytes: Predicted | None
    exponent: float | None
    accuracies: dict[str, float]
    quality: float | None
    against: tuple[str, ...]
    stopped: Speed | None = None
    best: bool = False

    @property
    def places(self) -> set[Place]:
        """Where its figures lie among the lengths measured."""
        return {figure.place for figure in (self.seconds, self.bytes) if figure is not None}


def parse_bytes(text: str) -> float:
    """``4GB``, ``512 MiB``: bytes.

    Raises:
        ValueError: anything else.
    """
    return _parsed(text, "memory", _BYTES, "4GB or 512MiB")


def parse_seconds(text: str) -> float:
    """``50ms``, ``1.5 s``: seconds.

    Raises:
        ValueError: anything else.
    """
    return _parsed(text, "latency", _SECONDS, "50ms or 1.5s")


def _parsed(text: str, name: str, units: dict[str, float], example: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-zµ]+)\s*", text)
    scale = found and (units.get(found[2]) or units.get(found[2].upper()))
    if not found or not scale or float(found[1]) <= 0:
        raise ValueError(f"{name} must be a number above 0 with its unit, such as {example}; got {text!r}")
    return float(found[1]) * scale


def choose(
    tables: Iterable[Table], *, device: str, kind: str, dim: int | None = None, heads: int | None = None
) -> tuple[Table, bool]:
    """The table of this machine, or one of its kind, and whether it is of this machine.

    Raises:
        ValueError: nothing of this kind or width was measured; the message names the command that measures.
    """
    whole = usable(tables)
    of_kind = [table for table in whole if table.kind == kind]
    width = "".join(f" --{name} {value}" for name, value in (("dim", dim), ("heads", heads)) if value is not None)
    command = f"{MEASURE} --device {kind}{width}"
    fit = [table for table in of_kind if dim in (None, table.dim) and heads in (None, table.heads)]
    if not fit:
        widths = sorted({f"dim {table.dim} with {table.heads} heads" for table in of_kind})
        known = f"only {', '.join(widths)}" if widths else "nothing"
        raise ValueError(f"{known} was measured on {kind}; measure here with: {command}")
    here = [table for table in fit if table.device == device]
    return (here or fit)[0], bool(here)


def usable(tables: Iterable[Table]) -> list[Table]:
    """The tables of full size with times; those without accuracy get another's, which asks for no machine or width.

    The networks of the tasks are of one size, whatever the width of what is timed.
    """
    whole = [table for table in tables if table.scale != "smoke"]
    scored = max(whole, key=lambda table: len(table.accuracy), default=None)
    return [
        dataclasses.replace(table, accuracy=scored.accuracy) if scored and not table.accuracy else table
        for table in whole
        if table.speed
    ]


def predict(points: Sequence[tuple[int, float]], length: int, growth: float) -> Predicted:
    """Along straight lines through the logarithms of lengths and figures; beyond the longest the last line goes on.

    With a single point the figure grows with the power ``growth``. Below the shortest length it is that length's: what
    every call costs does not shrink with the tokens, so that a line which went on would promise too little.

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("points must hold at least one measured length")
    known = sorted((math.log(at), math.log(value)) for at, value in points)
    x = math.log(length)
    if x < known[0][0]:
        return Predicted(math.exp(known[0][1]), "below")
    place: Place = "measured" if any(x == at for at, _ in known) else "between" if x < known[-1][0] else "beyond"
    if len(known) == 1:
        return Predicted(math.exp(known[0][1] + growth * (x - known[0][0])), place)
    left = next((index for index in range(len(known) - 2, 0, -1) if known[index][0] <= x), 0)
    (x0, y0), (x1, y1) = known[left], known[left + 1]
    return Predicted(math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0)), place)


@dataclasses.dataclass(frozen=True)
class Error:
    """How far predictions of lengths that were left out miss, as a factor: 1.1 is ten per cent."""

    median: float
    worst: float
    count: int


def left_out(table: Table, step: Step = "forward") -> dict[str, Error]:
    """The error of :func:`predict`, each measured length left out in turn: ``inside``, and ``beyond`` for the longest."""
    missed: dict[str, list[float]] = {"inside": [], "beyond": []}
    for points in _by_mixer(table, step).values():
        for index in range(1, len(points) if len(points) > 2 else 0):
            at, value = points[index]
            guess = predict([*points[:index], *points[index + 1 :]], at, 1.0).value
            missed["inside" if index < len(points) - 1 else "beyond"].append(abs(math.log(guess / value)))
    found = {}
    for where, errors in missed.items():
        if errors:
            errors.sort()
            found[where] = Error(math.exp(errors[len(errors) // 2]), math.exp(errors[-1]), len(errors))
    return found


def _by_mixer(table: Table, step: Step) -> dict[tuple[str, bool], list[tuple[int, float]]]:
    found: dict[tuple[str, bool], list[tuple[int, float]]] = {}
    for row in sorted(table.speed, key=lambda row: row.length):
        seconds = row.seconds(step)
        if seconds:
            found.setdefault((row.mixer, row.causal), []).append((row.length, seconds))
    return found


FITTED = 4  # lengths, the longest, that an exponent is fitted to; shorter ones are mostly what every call costs


def exponents(table: Table, step: Step) -> dict[tuple[str, bool], float]:
    """With which power of the tokens a step's time grows, by mixer and whether it is causal.

    By least squares of the logarithms over the :data:`FITTED` longest lengths; not where fewer than three were measured.
    """
    found = {}
    for way, points in _by_mixer(table, step).items():
        if len(points) > 2:
            found[way] = exponent(*zip(*points[-FITTED:], strict=True))
    return found


def advise(table: Table, wish: Wish) -> list[Advice]:
    """Every mixer under a wish, those that fit first and in the wish's order; then the others."""
    powers = exponents(table, wish.step)
    found = [_advice(card, table, wish, powers.get((card.name, wish.causal))) for card in mixers.cards().values()]
    fitting = [one for one in found if not one.against]
    marked = [dataclasses.replace(one, best=one in fitting and not _beaten(one, fitting)) for one in found]

    def place(one: Advice) -> tuple[bool, float, float]:
        seconds = one.seconds.value if one.seconds else math.inf
        first = {
            "accuracy": 1.0 if one.quality is None else -one.quality,
            "latency": seconds,
            "memory": one.bytes.value if one.bytes else math.inf,
        }[wish.order]
        return bool(one.against), first, seconds

    return sorted(marked, key=place)


def _beaten(one: Advice, others: Iterable[Advice]) -> bool:
    """Whether another is at least as fast and as good, and better in one of them."""

    def worth(advice: Advice) -> tuple[float, float]:
        assert advice.seconds is not None
        return -advice.seconds.value, advice.quality if advice.quality is not None else -1.0

    own = worth(one)
    return any(all(a >= b for a, b in zip(worth(o), own, strict=True)) and worth(o) != own for o in others)


def _advice(card: mixers.Card, table: Table, wish: Wish, exponent: float | None) -> Advice:
    rows = [row for row in table.speed if row.mixer == card.name and row.causal == wish.causal]
    seconds = _predicted([(row, row.seconds(wish.step)) for row in rows], wish.tokens, card.growth, wish.step)
    size = _predicted([(row, row.bytes(wish.step)) for row in rows], wish.tokens, card.growth, wish.step)
    stopped = None
    if wish.step != "token" or card.cache:
        unrun = [row for row in rows if row.stopped and row.length <= wish.tokens and row.seconds(wish.step) is None]
        stopped = min(unrun, key=lambda row: row.length, default=None)
    against = []
    if wish.causal and not card.causal:
        against.append("cannot be causal")
    elif not wish.causal and card.causal == "only":
        against.append("is causal only")
    elif wish.step == "token" and not card.cache:
        against.append("keeps no cache")
    elif seconds is None:
        against.append("not measured")
    elif stopped and stopped.stopped == NO_ROOM:
        against.append(f"no memory for {stopped.length:,} tokens")
    for figure, most, words in ((seconds, wish.latency, "too slow"), (size, wish.memory, "too large")):
        if figure and most is not None and figure.value > most:
            against.append(f"may be {words}" if figure.place == "below" else words)
    accuracies = {row.task: row.accuracy for row in table.accuracy if row.mixer == card.name}
    return Advice(card, seconds, size, exponent, accuracies, _quality(card.name, table, wish), tuple(against), stopped)


def _predicted(rows: list[tuple[Speed, float | None]], tokens: int, growth: float, step: Step) -> Predicted | None:
    points = [(row.length, value) for row, value in rows if value]
    # A token's time hardly grows with what came before, whatever that of a whole pass does.
    return predict(points, tokens, 0.0 if step == "token" else growth) if points else None


def _quality(name: str, table: Table, wish: Wish) -> float | None:
    """Mean over the tasks that all candidates can do; without it, who does fewer would be better or worse for that."""
    tasks = {row.task for row in table.accuracy} - (set() if wish.causal else {LEFT_TO_RIGHT})
    own = [row for row in table.accuracy if row.mixer == name and row.task in tasks]
    if not tasks or len(own) < len(tasks):
        return None
    return sum((row.accuracy - row.chance) / (100 - row.chance) for row in own) / len(own)
