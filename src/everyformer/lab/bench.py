"""Speed side by side with peers: ratios taken in one run, recorded as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from everyformer.files import write_atomic
from everyformer.lab.environment import describe
from everyformer.lab.measure import median, side_by_side


@dataclasses.dataclass
class Case:
    """One thing to time: ``ours`` against ``peers``, which do the same work on the same input.

    ``target`` is the ratio (the first peer's time / ours) aimed at; it is reported, never asserted.
    """

    name: str
    ours: Callable[[], Any]
    peers: dict[str, Callable[[], Any]]
    target: float | None = None
    note: str = ""


@dataclasses.dataclass
class Row:
    """A timed case: seconds (median) of each candidate, and each peer's time as a multiple of ours."""

    name: str
    seconds: dict[str, float]
    ratios: dict[str, float]
    target: float | None
    note: str


def load_peers(file: Path) -> Callable[[str], Mapping[str, Callable[[], Any]]]:
    """The function ``peers(case_name) -> {name: callable}`` of a user's own file.

    Raises:
        ValueError: the file is missing or has no such function.
    """
    spec = importlib.util.spec_from_file_location("everyformer_peers", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ValueError(f"peer must be a Python file, got {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "peers", None)):
        raise ValueError(f"peer file {file} must define peers(case_name) -> dict of name to callable")
    return module.peers  # type: ignore[no-any-return]


def run_cases(
    cases: Iterable[Case],
    rounds: int,
    device: str,
    extra: Callable[[str], Mapping[str, Callable[[], Any]]] | None = None,
    report: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Time every case, peers interleaved with ours; ``report`` is called as each finishes."""
    rows = []
    for case in cases:
        peers = {**case.peers, **(extra(case.name) if extra else {})}
        times = side_by_side({"everyformer": case.ours, **peers}, rounds=rounds, warmup=2, device=device)
        seconds = {name: median(values) for name, values in times.items()}
        ours = seconds["everyformer"]
        ratios = {name: seconds[name] / ours for name in peers}
        rows.append(Row(case.name, seconds, ratios, case.target, case.note))
        report(rows[-1])
    return rows


def record(slug: str, rows: list[Row], device: str, folder: Path) -> Path:
    """Write ``<folder>/<slug>.json`` with the machine and the versions the ratios belong to."""
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    content = {
        "paper": slug,
        **describe(device),
        "created": created,
        "cases": [dataclasses.asdict(row) for row in rows],
    }
    return write_atomic(folder / f"{slug}.json", json.dumps(content, indent=1) + "\n")
