"""What was measured of token mixers, by machine: a JSON file that is read without torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from everyformer.files import write_atomic

Step = Literal["forward", "training", "token"]
STEPS: tuple[Step, ...] = get_args(Step)
NO_ROOM = "memory of the machine"  # why a mixer was stopped that the machine had no memory for
MEASURE = "everyformer bench mixers"  # the command that fills a table


@dataclasses.dataclass(frozen=True)
class Speed:
    """One mixer at one length, a batch of one.

    Attributes:
        forward, training: seconds of a forward pass, and of one with its backward pass; none where it was not run.
        token: seconds for the token after ``length`` others, where a cache can be kept.
        memory, training_memory: peak bytes beyond weights and input.
        weights: bytes of the weights, which of some mixers grow with the length.
        stopped: why the steps without seconds were not run at this length and longer ones.
        token_memory: bytes of the cache after ``length`` tokens, and the peak of the next one's step beyond them.
        visits: how many times, apart from one another, it was timed, the fastest counts; 0 where that is not known.
        run: of :attr:`Table.runs`, in which it was measured; empty where it was the table's first.
    """

    mixer: str
    causal: bool
    length: int
    forward: float | None = None
    training: float | None = None
    token: float | None = None
    memory: float | None = None
    training_memory: float | None = None
    weights: float = 0.0
    stopped: str = ""
    token_memory: float | None = None
    visits: int = 0
    run: str = ""

    @property
    def key(self) -> tuple[str, bool, int]:
        """What no two rows of a table share."""
        return self.mixer, self.causal, self.length

    def seconds(self, step: Step) -> float | None:
        """The time of a step."""
        return {"forward": self.forward, "training": self.training, "token": self.token}[step]

    def bytes(self, step: Step) -> float | None:
        """The memory of a step with the weights."""
        peak = {"forward": self.memory, "training": self.training_memory, "token": self.token_memory}[step]
        return None if peak is None else peak + self.weights


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A small network of one mixer on one task of ``length`` tokens: per cent right, by chance too, and nats of loss."""

    mixer: str
    task: str
    length: int
    accuracy: float
    chance: float
    loss: float
    parameters: int
    run: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What no two rows of a table share."""
        return self.mixer, self.task


@dataclasses.dataclass
class Table:
    """Everything measured on one machine at one width.

    Attributes:
        kind: ``cpu``, ``cuda`` or ``mps``.
        versions, commit, created: of the first run.
        runs: the same of each run that rows name; the names begin with the time, so that a later one is greater.
    """

    device: str
    kind: str
    dim: int
    heads: int
    scale: str
    versions: dict[str, str]
    commit: str
    created: str
    speed: list[Speed] = dataclasses.field(default_factory=list)
    accuracy: list[Accuracy] = dataclasses.field(default_factory=list)
    runs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, int, int, str]:
        """What no two tables share."""
        return self.device, self.dim, self.heads, self.scale

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Table:
        """From ``dataclasses.asdict``."""
        speed = [Speed(**row) for row in data["speed"]]
        return cls(**{**data, "speed": speed, "accuracy": [Accuracy(**row) for row in data["accuracy"]]})


def own_file() -> Path:
    """Where a user's measurements go, beside downloaded data."""
    import pooch

    return Path(pooch.os_cache("everyformer")) / "mixers.json"


def shipped_file() -> Path:
    """The measurements that come with the library: the checkout's, or the copy in the wheel."""
    checkout = _checkout()
    return (checkout if checkout.is_dir() else Path(__file__).parents[1] / "_benchmarks") / "mixers.json"


def file_to_fill() -> Path:
    """Where to write measurements unless told: in a checkout what is shipped from it, else the user's own file."""
    return shipped_file() if _checkout().is_dir() else own_file()


def _checkout() -> Path:
    return Path(__file__).parents[3] / "benchmarks"


def load(files: Iterable[Path] | None = None) -> list[Table]:
    """The tables of the user's file and the shipped one, or of ``files``; of equal ones, the first.

    Raises:
        ValueError: a file that is no table.
    """
    found: dict[tuple[str, int, int, str], Table] = {}
    for file in (own_file(), shipped_file()) if files is None else files:
        if not file.is_file():
            continue
        try:
            tables = [Table.from_json(data) for data in json.loads(file.read_text(encoding="utf-8"))["tables"]]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} holds no measurements of mixers: {error}") from error
        for table in tables:
            found.setdefault(table.identity, table)
    return list(found.values())


Row = TypeVar("Row", Speed, Accuracy)


def later(known: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """The rows of both; of two with the same key that of the later run, or the new one."""
    rows: dict[Any, Row] = {row.key: row for row in known}
    for row in new:
        if row.key not in rows or row.run >= rows[row.key].run:
            rows[row.key] = row
    return list(rows.values())


def save(table: Table, file: Path) -> Path:
    """Put a table into a file; other tables stay, and of this one the rows that a later run has put there, or only it."""
    tables = load([file])
    others = [other for other in tables if other.identity != table.identity]
    whole = dataclasses.replace(table, speed=[*table.speed], accuracy=[*table.accuracy])
    for before in tables:
        if before.identity == table.identity:
            whole.speed = later(before.speed, table.speed)
            whole.accuracy = later(before.accuracy, table.accuracy)
            whole.runs = {**before.runs, **table.runs}
    content = {"tables": [dataclasses.asdict(one) for one in (*others, whole)]}
    return write_atomic(file, json.dumps(content, indent=1) + "\n")
