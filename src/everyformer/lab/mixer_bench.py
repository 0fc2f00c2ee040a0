"""Time, memory and accuracy of every token mixer on this machine, kept cell by cell."""

from __future__ import annotations

import dataclasses
import datetime
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everyformer import mixers
from everyformer.catalog import Scale, lookup
from everyformer.lab import environment, mixing_samples, mixing_tasks
from everyformer.lab.measure import count_parameters, median, peak_extra_bytes, side_by_side
from everyformer.lab.mixer_table import NO_ROOM, STEPS, Accuracy, Speed, Step, Table, later, load, save

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and where a mixer is stopped.

    Attributes:
        lengths: at which time and memory are taken; empty for neither.
        rounds: timings of a cell at each of two visits, between which the other cells are timed.
        seconds, bytes: most that a forward pass or a training step may be expected to take.
        scale: of the tasks, and of the table; what is measured at ``smoke`` is never advised by.
        tasks: whether accuracy is measured too.
    """

    dim: int = 128
    heads: int = 4
    lengths: tuple[int, ...] = LENGTHS
    rounds: int = 3
    seconds: float = 4.0
    bytes: float = 4 * 2.0**30
    scale: Scale = "cpu"
    tasks: bool = True

    def __post_init__(self) -> None:
        if min(self.lengths, default=1) < 1 or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths must be rising and at least 1, got {self.lengths}")
        if not self.lengths and not self.tasks:
            raise ValueError("lengths must not be empty where there are no tasks: nothing is left to measure")
        for name in ("rounds", "seconds", "bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


QUICK = Settings(dim=32, heads=2, lengths=(64, 128), rounds=1, scale="smoke")


def measure(
    file: Path,
    *,
    settings: Settings | None = None,
    names: tuple[str, ...] = (),
    device: str = "cpu",
    seed: int = 0,
    again: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Table:
    """Measure what ``file`` does not hold of this machine yet; every cell is written as soon as it is known.

    Args:
        names: mixers to measure; all unless told.
        again: measure what the file holds too, and replace it.
        progress: called with each cell that is measured.

    Raises:
        ValueError: an unknown mixer or device, or settings that do not fit.
    """
    settings = settings or Settings()
    cards = {name: lookup(name, mixers.cards(), "mixer") for name in names or mixers.cards()}
    if settings.dim < 1 or settings.heads < 1 or settings.dim % settings.heads:
        raise ValueError(f"dim must be a multiple of heads, got dim={settings.dim} and heads={settings.heads}")
    environment.check_device(device)
    table, run = _begun(file, settings, device)

    def keep(row: Speed | Accuracy) -> None:
        row = dataclasses.replace(row, run=row.run or run)
        if isinstance(row, Speed):
            table.speed = later(table.speed, [row])
        else:
            table.accuracy = later(table.accuracy, [row])
        save(table, file)

    ways = [(name, causal) for name, card in cards.items() for causal in (False, True) if can(card, causal)]
    tasks = [(name, task) for name in cards for task in mixing_samples.NAMES] if settings.tasks else []
    for name, causal in _shown(ways, "time and memory"):
        known = [row for row in _rows(table, name, causal) if not (again and row.length in settings.lengths)]
        if set(settings.lengths) - {row.length for row in known}:
            progress(f"{name}, {_way(causal)}")
            for row in speeds(name, causal, settings, device, known):
                keep(row)
    for name, causal in _shown(ways, "time once more"):
        # Only what this code was timed at: the faster of two figures is to be one mixer's.
        once = [
            row
            for row in _rows(table, name, causal)
            if row.visits == 1 and row.forward and row.length in settings.lengths
            if table.runs[row.run]["commit"] == table.runs[run]["commit"]
        ]
        if once:
            progress(f"{name}, {_way(causal)}, once more")
            for row in once:
                keep(timed_again(row, settings, device))
    for name, task in _shown(tasks, "accuracy"):
        if not again and any(row.key == (name, task) for row in table.accuracy):
            continue
        given = mixing_tasks.task(task, settings.scale)
        if mixing_tasks.fits(name, given):
            progress(f"{name}, {given.title}")
            keep(accuracy(name, given, settings.scale, seed=seed, device=device))
    return table


def can(card: mixers.Card, causal: bool) -> bool:
    """Whether a mixer can be used this way."""
    return bool(card.causal) if causal else card.causal != "only"


def _way(causal: bool) -> str:
    return "causal" if causal else "seeing all"


def _begun(file: Path, settings: Settings, device: str) -> tuple[Table, str]:
    """The table as the file holds it, or a new one, and the name of this run in it."""
    described = environment.describe(device)
    made = {
        "versions": described["versions"], "commit": described["commit"],
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
    }  # fmt: skip
    new = Table(
        described["device"], device.partition(":")[0], settings.dim, settings.heads, settings.scale, **made,
    )  # fmt: skip
    table = next((known for known in load([file]) if known.identity == new.identity), new)
    run = f"{made['created']} {made['commit']}"
    table.runs[run] = made
    return table, run


def _rows(table: Table, name: str, causal: bool) -> list[Speed]:
    return [row for row in table.speed if (row.mixer, row.causal) == (name, causal)]


def speeds(
    name: str, causal: bool, settings: Settings, device: str, known: list[Speed] | None = None
) -> Iterator[Speed]:
    """A mixer at each length that ``known`` lacks, until it is too slow or too large.

    What it will take is foreseen from the last length and the growth between the last two, so that nothing runs for
    hours before it is stopped; longer lengths are then recorded as stopped. Training may be stopped before the pass is.
    A mixer that cannot be built so wide or long is stopped too.
    """
    rows = sorted(known or [], key=lambda row: row.length)
    for length in settings.lengths:
        if not any(row.length == length for row in rows):
            row = _measured(name, causal, length, settings, device, [row for row in rows if row.length < length])
            rows.append(row)
            yield row


def _measured(name: str, causal: bool, length: int, settings: Settings, device: str, shorter: list[Speed]) -> Speed:
    """A mixer at one length, step by step until one is stopped."""
    row = Speed(name, causal, length, visits=1)
    built: tuple[Any, Tensor] | None = None
    steps: tuple[Step, ...] = ("forward", "training")
    if causal and mixers.cards()[name].cache:
        steps = ("forward", "token", "training")
    for step in steps:
        before = (known.stopped for known in shorter if known.stopped and known.seconds(step) is None)
        stopped = next(before, "") or _foreseen(name, step, shorter, length, settings)
        if stopped:
            return dataclasses.replace(row, stopped=stopped)
        try:
            built = built or _built(name, causal, length, settings, device)
            row = dataclasses.replace(row, **_figures(step, *built, settings.rounds, device))
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            return dataclasses.replace(row, stopped=NO_ROOM)
        except ValueError as error:  # a width, number of heads or length that this mixer does not take
            return dataclasses.replace(row, stopped=str(error))
    return row


def _is_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or ("memory" in text and "alloc" in text)


def _foreseen(name: str, step: Step, shorter: list[Speed], length: int, settings: Settings) -> str:
    """Why a step is not run at a length, or nothing."""
    if step == "token":
        return ""
    called = "forward pass" if step == "forward" else "training step"
    for kind, limit, unit, values in (
        ("time", settings.seconds, "s", [row.seconds(step) for row in shorter]),
        (
            "memory",
            settings.bytes,
            "bytes",
            [row.memory if step == "forward" else row.training_memory for row in shorter],
        ),
    ):
        points = [(row.length, value) for row, value in zip(shorter, values, strict=True) if value]
        if not points:
            continue
        growth = mixers.cards()[name].growth
        if len(points) > 1:
            (before, small), (last, large) = points[-2:]
            growth = max(1.0, math.log(large / small) / math.log(last / before))
        foreseen = points[-1][1] * (length / points[-1][0]) ** growth
        if foreseen > limit:
            return f"{kind}: about {foreseen:.3g} {unit} for a {called} of {length} tokens, limit {limit:.3g}"
    return ""


def _built(name: str, causal: bool, length: int, settings: Settings, device: str) -> tuple[Any, Tensor]:
    """A mixer and tokens for it."""
    torch.manual_seed(0)
    mixer = mixers.create(name, settings.dim, heads=settings.heads, causal=causal, length=length).to(device)
    return mixer, torch.randn(1, length, settings.dim, device=device)


def _pass(step: Step, mixer: Any, x: Tensor, cache: dict[str, Any]) -> Callable[[], Any]:
    """A step as a function to be timed; that of a token reads and fills ``cache``."""
    inputs = x.clone().requires_grad_()

    def forward() -> Tensor:
        with torch.no_grad():
            return mixer(x)  # type: ignore[no-any-return]

    def token() -> Tensor:
        with torch.no_grad():
            return mixer(x[:, :1], cache=cache)  # type: ignore[no-any-return]

    def training() -> None:
        mixer.zero_grad(set_to_none=True)
        inputs.grad = None
        mixer(inputs).square().mean().backward()

    return {"forward": forward, "token": token, "training": training}[step]


def _filled(step: Step, mixer: Any, x: Tensor) -> dict[str, Any]:
    """The cache of a mixer that has read ``x``; empty for steps that need none."""
    cache: dict[str, Any] = {}
    if step == "token":
        with torch.no_grad():
            mixer(x, cache=cache)
    return cache


def _seconds(step: Step, mixer: Any, x: Tensor, rounds: int, device: str) -> float:
    many, warmup = (4 * rounds, 2) if step == "token" else (rounds, 1)  # a token is quick, and its time wavers
    run = _pass(step, mixer, x, _filled(step, mixer, x))
    return median(side_by_side({step: run}, many, warmup, device)[step])


def _figures(step: Step, mixer: Any, x: Tensor, rounds: int, device: str) -> dict[str, Any]:
    """What a step takes, by the names of :class:`Speed`."""
    seconds = _seconds(step, mixer, x, rounds, device)
    cache = _filled(step, mixer, x)
    size = float(kept_bytes(cache) + peak_extra_bytes(_pass(step, mixer, x, cache), device))
    if step == "forward":
        weights = float(sum(weight.nbytes for weight in mixer.parameters()))
        return {"forward": seconds, "memory": size, "weights": weights}
    return {step: seconds, f"{step}_memory": size}


def kept_bytes(cache: Any) -> int:
    """Bytes of the tensors in a cache, however nested."""
    if isinstance(cache, Tensor):
        return cache.nbytes
    parts = cache.values() if isinstance(cache, dict) else cache if isinstance(cache, (list, tuple)) else ()
    return sum(map(kept_bytes, parts))


def timed_again(row: Speed, settings: Settings, device: str) -> Speed:
    """The row with the faster of its seconds and those of now: what a slow spell of the machine adds is no mixer's."""
    mixer, x = _built(row.mixer, row.causal, row.length, settings, device)
    faster: dict[str, Any] = {}
    for step in STEPS:
        seconds = row.seconds(step)
        if seconds:
            faster[step] = min(seconds, _seconds(step, mixer, x, settings.rounds, device))
    return dataclasses.replace(row, visits=2, **faster)


def accuracy(name: str, given: mixing_samples.Task, scale: Scale, *, seed: int, device: str) -> Accuracy:
    """A mixer's network on a task, trained or from the cache."""
    model = mixing_tasks.trained(name, given.name, scale, seed=seed, device=device).to(device)
    found = mixing_tasks.score(model, given, mixing_tasks.SIZES[scale].tested)
    return Accuracy(
        name, given.name, given.length, found["accuracy"], given.chance, found["loss"], count_parameters(model)
    )


def _shown(cells: list[Any], what: str) -> Iterator[Any]:
    """The cells, with a progress bar where there is a terminal."""
    if not sys.stderr.isatty():
        yield from cells
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(cells, description=f"mixers: {what}", console=Console(stderr=True), transient=True)
