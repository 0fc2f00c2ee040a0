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
from everyformer.lab.mixer_table import NO_ROOM, Accuracy, Speed, Table, load, save

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and where a mixer is stopped.

    Attributes:
        lengths: at which time and memory are taken; empty for neither.
        seconds, bytes: most that a training step may be expected to take.
        scale: of the tasks, and of the table; what is measured at ``smoke`` is never advised by.
        tasks: whether accuracy is measured too.
    """

    dim: int = 128
    heads: int = 4
    lengths: tuple[int, ...] = LENGTHS
    rounds: int = 5
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
    progress: Callable[[str], None] = lambda line: None,
) -> Table:
    """Measure what ``file`` does not hold of this machine yet; every cell is written as soon as it is known.

    Args:
        names: mixers to measure; all unless told.
        progress: called with each cell that is measured.

    Raises:
        ValueError: an unknown mixer or device, or settings that do not fit.
    """
    settings = settings or Settings()
    cards = {name: lookup(name, mixers.cards(), "mixer") for name in names or mixers.cards()}
    if settings.dim < 1 or settings.heads < 1 or settings.dim % settings.heads:
        raise ValueError(f"dim must be a multiple of heads, got dim={settings.dim} and heads={settings.heads}")
    environment.check_device(device)
    table = _table(file, settings, device)
    ways = [(name, causal) for name, card in cards.items() for causal in (False, True) if can(card, causal)]
    tasks = [(name, task) for name in cards for task in mixing_samples.NAMES] if settings.tasks else []
    for name, causal in _shown(ways, "time and memory"):
        known = {row.length for row in table.speed if (row.mixer, row.causal) == (name, causal)}
        if set(settings.lengths) - known:
            progress(f"{name}, {'causal' if causal else 'seeing all'}")
            for row in speeds(name, causal, settings, device, _rows(table, name, causal)):
                table.speed.append(row)
                save(table, file)
    for name, task in _shown(tasks, "accuracy"):
        if any((row.mixer, row.task) == (name, task) for row in table.accuracy):
            continue
        given = mixing_tasks.task(task, settings.scale)
        if mixing_tasks.fits(name, given):
            progress(f"{name}, {given.title}")
            table.accuracy.append(accuracy(name, given, settings.scale, seed=seed, device=device))
            save(table, file)
    return table


def can(card: mixers.Card, causal: bool) -> bool:
    """Whether a mixer can be used this way."""
    return bool(card.causal) if causal else card.causal != "only"


def _table(file: Path, settings: Settings, device: str) -> Table:
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    described = environment.describe(device)
    new = Table(
        kind=device.partition(":")[0], dim=settings.dim, heads=settings.heads, scale=settings.scale,
        created=created, **described,
    )  # fmt: skip
    return next((known for known in load([file]) if known.identity == new.identity), new)


def _rows(table: Table, name: str, causal: bool) -> list[Speed]:
    return [row for row in table.speed if (row.mixer, row.causal) == (name, causal)]


def speeds(
    name: str, causal: bool, settings: Settings, device: str, known: list[Speed] | None = None
) -> Iterator[Speed]:
    """A mixer at each length that ``known`` lacks, until it is too slow or too large.

    What it will take is foreseen from the last length and the growth between the last two, so that nothing runs for
    hours before it is stopped; longer lengths are then recorded as stopped.
    """
    rows = sorted(known or [], key=lambda row: row.length)
    for length in settings.lengths:
        if any(row.length == length for row in rows):
            continue
        shorter = [row for row in rows if row.length < length]
        stopped = next((row.stopped for row in shorter if row.stopped), "") or _foreseen(
            name, shorter, length, settings
        )
        if stopped:
            row = Speed(name, causal, length, stopped=stopped)
        else:
            try:
                row = _measured(name, causal, length, settings, device)
            except (MemoryError, RuntimeError) as error:
                if not _is_memory(error):
                    raise
                row = Speed(name, causal, length, stopped=NO_ROOM)
        rows.append(row)
        yield row


def _is_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or ("memory" in text and "alloc" in text)


def _foreseen(name: str, shorter: list[Speed], length: int, settings: Settings) -> str:
    """Why a length is not run, or nothing."""
    for kind, limit, unit, values in (
        ("time", settings.seconds, "s", [row.training for row in shorter]),
        ("memory", settings.bytes, "bytes", [row.training_memory for row in shorter]),
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
            return f"{kind}: about {foreseen:.3g} {unit} for a training step of {length} tokens, limit {limit:.3g}"
    return ""


def _measured(name: str, causal: bool, length: int, settings: Settings, device: str) -> Speed:
    torch.manual_seed(0)
    mixer = mixers.create(name, settings.dim, heads=settings.heads, causal=causal, length=length).to(device)
    x = torch.randn(1, length, settings.dim, device=device)

    def forward() -> Tensor:
        with torch.no_grad():
            return mixer(x)  # type: ignore[no-any-return]

    inputs = x.clone().requires_grad_()

    def training() -> None:
        mixer.zero_grad(set_to_none=True)
        inputs.grad = None
        mixer(inputs).square().mean().backward()

    runs = {"forward": forward, "training": training}
    times = side_by_side(runs, rounds=settings.rounds, device=device)
    token = None
    if causal and mixers.cards()[name].cache:
        token = _token_seconds(mixer, x, settings.rounds, device)
    return Speed(
        name, causal, length, median(times["forward"]), median(times["training"]), token,
        float(peak_extra_bytes(forward, device)), float(peak_extra_bytes(training, device)),
        float(sum(weight.nbytes for weight in mixer.parameters())),
    )  # fmt: skip


def _token_seconds(mixer: Any, x: Tensor, rounds: int, device: str) -> float:
    """The next token's seconds once all of ``x`` is in the cache."""
    cache: dict[str, Any] = {}
    with torch.no_grad():
        mixer(x, cache=cache)
        return median(side_by_side({"token": lambda: mixer(x[:, :1], cache=cache)}, 4 * rounds, 2, device)["token"])


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
