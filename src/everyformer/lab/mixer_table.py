"""What was measured of token mixers, by machine: a JSON file that is read without torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from everyformer.files import write_atomic

Step = Literal["forward", "training", "token"]
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
        stopped: why it was not run at this length and longer ones.
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

    def seconds(self, step: Step) -> float | None:
        """The time of a step."""
        return {"forward": self.forward, "training": self.training, "token": self.token}[step]

    def bytes(self, step: Step) -> float | None:
        """The memory of a step with the weights; that of a token is not told apart from that of a pass."""
        peak = self.training_memory if step == "training" else self.memory
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


@dataclasses.dataclass
class Table:
    """Everything measured on one machine at one width; ``kind`` is ``cpu``, ``cuda`` or ``mps``."""

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


def save(table: Table, file: Path) -> Path:
    """Put a table into a file; other tables stay, and of this one the rows that another process has put there."""
    tables = load([file])
    others = [other for other in tables if other.identity != table.identity]
    whole = dataclasses.replace(table, speed=[*table.speed], accuracy=[*table.accuracy])
    for before in tables:
        if before.identity == table.identity:
            known = {(row.mixer, row.causal, row.length) for row in table.speed}
            whole.speed += [row for row in before.speed if (row.mixer, row.causal, row.length) not in known]
            scored = {(row.mixer, row.task) for row in table.accuracy}
            whole.accuracy += [row for row in before.accuracy if (row.mixer, row.task) not in scored]
    content = {"tables": [dataclasses.asdict(one) for one in (*others, whole)]}
    return write_atomic(file, json.dumps(content, indent=1) + "\n")
