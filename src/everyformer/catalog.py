"""The vocabulary of everyformer and the catalogue of its papers.

A :class:`Paper` is a card with claims; a :class:`Claim` says what the paper reports, how it is checked here and which
threshold decides; a :class:`Result` is what a check wrote down. The catalogue itself is the folders under
``everyformer/papers``: each one's ``__init__`` defines ``PAPER``. This module is pure standard library, so that listing
thirty-four papers costs no import of torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

Scale = Literal["smoke", "cpu", "paper"]
Verdict = Literal["reproduced", "direction only", "not reproduced"]
ThresholdKind = Literal["ratio", "relative", "difference", "bound"]

SCALES: tuple[str, ...] = get_args(Scale)
VERDICTS: tuple[str, ...] = get_args(Verdict)
TAGS = (
    "attention", "precision", "diffusion", "video", "vision", "language", "series",
    "theory", "graph", "spacetime", "control", "3d", "adapter", "survey",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Threshold:
    """The size of effect a claim must show, declared before it is run.

    ``ratio``: method / baseline (baseline / method where lower is better), no effect is 1.
    ``relative``: improvement over the baseline as a fraction of it, no effect is 0.
    ``difference``: improvement over the baseline in the metric's unit, no effect is 0.
    ``bound``: the effect is the margin by which the method keeps to the better side of ``size``.
    """

    kind: ThresholdKind
    size: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(ThresholdKind):
            raise ValueError(f"kind must be one of {get_args(ThresholdKind)}, got {self.kind!r}")

    @property
    def null(self) -> float:
        """The effect that means 'no difference'."""
        return 1.0 if self.kind == "ratio" else 0.0

    @property
    def goal(self) -> float:
        """The effect from which a claim counts as reproduced."""
        return 0.0 if self.kind == "bound" else self.size


@dataclasses.dataclass(frozen=True)
class Claim:
    """One checkable statement of a paper.

    ``paper_value`` and ``paper_baseline`` are the paper's own figures in ``unit`` and belong to ``setting``; they are
    ``None`` where no figure could be verified. ``run`` and ``plan`` name functions in the paper's ``claim.py``:
    ``run(job: Job) -> Measurement`` and ``plan() -> Plan``.
    """

    name: str
    statement: str
    metric: str
    unit: str
    better: Literal["higher", "lower"]
    paper_value: float | None
    paper_baseline: float | None
    setting: str
    method: str = ""
    baseline: str = ""
    threshold: Threshold | None = None
    run: str = ""
    plan: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", self.name):
            raise ValueError(f"name must be snake_case, got {self.name!r}")
        if self.better not in ("higher", "lower"):
            raise ValueError(f"better must be 'higher' or 'lower', got {self.better!r}")
        if self.run and self.threshold is None:
            raise ValueError(f"threshold must be declared before claim {self.name!r} can be run")


@dataclasses.dataclass(frozen=True)
class Paper:
    """A paper's card: what it is, where it comes from, and what it claims.

    ``published`` is an ISO date, ``authors`` a head count, ``code`` the authors' repository and ``licence`` what the
    authors' code and weights are under; each is ``None`` or says so where nothing is known.
    """

    slug: str
    title: str
    arxiv: str
    published: str | None
    authors: int | None
    organisation: str | None
    summary: str
    code: str | None
    licence: str
    tags: tuple[str, ...]
    claims: tuple[Claim, ...]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tags) - set(TAGS))
        if unknown or not 1 <= len(self.tags) <= 4:
            raise ValueError(f"tags must be one to four of {TAGS}, got {self.tags}")
        if not re.fullmatch(r"\d{4}\.\d{5}", self.arxiv):
            raise ValueError(f"arxiv must look like 2310.06625, got {self.arxiv!r}")
        names = [claim.name for claim in self.claims]
        if len(set(names)) != len(names):
            raise ValueError(f"claims must have different names, got {names}")

    @property
    def folder(self) -> Path:
        """The folder that holds the paper's rooms."""
        return PAPERS / self.slug

    @property
    def built(self) -> bool:
        """Whether the contribution itself is there: a folder without one is a card only."""
        return any((self.folder / room).is_file() for room in ("model.py", "method.py", "layer.py"))

    @property
    def url(self) -> str:
        """The paper's address."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    def claim(self, name: str) -> Claim:
        """The claim called ``name``; raises :class:`UnknownName` with the nearest names."""
        return lookup(name, {claim.name: claim for claim in self.claims}, f"claim of {self.slug}")  # type: ignore[no-any-return]

    def room(self, name: str) -> Any:
        """Import one of the paper's modules: ``"model"``, ``"claim"``, ``"checkpoint"``, ``"bench"`` ..."""
        return importlib.import_module(f"everyformer.papers.{self.slug}.{name}")


@dataclasses.dataclass(frozen=True)
class Job:
    """What one measurement of a claim is asked to do.

    ``folder`` belongs to this (claim, scale, seed) alone: what a run leaves there, a second run with the same folder
    resumes from. ``precision`` and ``strategy`` are Lightning's names.
    """

    scale: Scale
    seed: int
    device: str
    folder: Path
    precision: str = "32-true"
    strategy: str = "auto"


@dataclasses.dataclass
class Panel:
    """One plot of a measurement: lines, bars or a heat map."""

    title: str
    x_label: str
    y_label: str
    lines: dict[str, tuple[list[float], list[float]]] = dataclasses.field(default_factory=dict)
    kind: Literal["line", "bar", "heat"] = "line"
    log_x: bool = False
    log_y: bool = False
    ticks: list[str] = dataclasses.field(default_factory=list)
    grid: list[list[float]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Measurement:
    """What one seed of a claim gave: the metric for method and baseline, further figures, and panels to plot."""

    method: float
    baseline: float
    extras: dict[str, float] = dataclasses.field(default_factory=dict)
    series: tuple[Panel, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a claim costs at the paper's own size: parameters, FLOPs and bytes of one training step, and the launch."""

    parameters: int
    flops: float
    memory_bytes: float
    launch: str
    notes: str = ""


@dataclasses.dataclass
class Spread:
    """A mean over seeds with its 95% interval; ``low`` and ``high`` are ``None`` when one seed gives no interval."""

    mean: float
    low: float | None
    high: float | None
    values: list[float]


@dataclasses.dataclass
class Result:
    """A recorded check of a claim: ``results/<paper>.<claim>.<scale>.json``."""

    paper: str
    claim: str
    scale: str
    metric: str
    unit: str
    better: str
    method: Spread
    baseline: Spread
    effect: Spread
    threshold: Threshold
    verdict: str
    paper_value: float | None
    paper_baseline: float | None
    seeds: list[int]
    device: str
    versions: dict[str, str]
    commit: str
    seconds: float
    peak_mb: float
    created: str
    extras: dict[str, Spread] = dataclasses.field(default_factory=dict)
    series: list[Panel] = dataclasses.field(default_factory=list)

    @property
    def stem(self) -> str:
        """File name without ending, shared by the JSON and its plot."""
        return f"{self.paper}.{self.claim}.{self.scale}"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """From :meth:`to_json`; raises ``ValueError`` that names a field which is missing."""
        fields = {field.name for field in dataclasses.fields(cls)}
        missing = sorted(fields - set(data) - {"extras", "series"})
        if missing:
            raise ValueError(f"result lacks the fields {missing}")
        values = {name: data[name] for name in fields & set(data)}
        for name in ("method", "baseline", "effect"):
            values[name] = Spread(**values[name])
        values["threshold"] = Threshold(**values["threshold"])
        values["extras"] = {name: Spread(**spread) for name, spread in values.get("extras", {}).items()}
        values["series"] = [
            Panel(**{**panel, "lines": {k: (v[0], v[1]) for k, v in panel["lines"].items()}})
            for panel in values.get("series", [])
        ]
        return cls(**values)


PAPERS = Path(__file__).parent / "papers"


class UnknownName(ValueError):
    """A name that is not in a table; the message holds the nearest ones."""


def lookup(name: str, table: Mapping[str, Any], what: str) -> Any:
    """``table[name]``, or :class:`UnknownName` that names the nearest keys."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name.lower(), list(table), n=3, cutoff=0.5)
    near += [key for key in table if name.lower() in key and key not in near][: 3 - len(near)]
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(table)) or 'none'}"
    raise UnknownName(f"unknown {what} {name!r}; {hint}")


@functools.cache
def _catalogue() -> dict[str, Paper]:
    found = {}
    for card in sorted(PAPERS.glob("*/__init__.py")):
        paper = importlib.import_module(f"everyformer.papers.{card.parent.name}").PAPER
        if paper.slug != card.parent.name:
            raise ValueError(f"the card in papers/{card.parent.name} says slug={paper.slug!r}")
        found[paper.slug] = paper
    return found


def papers() -> tuple[Paper, ...]:
    """Every paper of the catalogue, sorted by slug."""
    return tuple(_catalogue().values())


def paper(slug: str) -> Paper:
    """The paper called ``slug``; raises :class:`UnknownName` with the nearest names."""
    return lookup(slug, _catalogue(), "paper")  # type: ignore[no-any-return]


def recorded(*folders: Path) -> dict[str, Result]:
    """Results by stem; an earlier folder wins. A file that is no result raises ``ValueError``."""
    found: dict[str, Result] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            try:
                result = Result.from_json(json.loads(file.read_text(encoding="utf-8")))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{file} is not a result: {error}") from error
            found.setdefault(result.stem, result)
    return found


def shipped_results() -> Path:
    """The folder of results that come with the library: the checkout's ``results/`` or the copy in the wheel."""
    checkout = Path(__file__).parents[2] / "results"
    return checkout if checkout.is_dir() else Path(__file__).parent / "_results"


def lazy(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__, __dir__, __all__`` of a package whose public ``names`` live in modules imported on first use."""

    def getattr_(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(f"{package}.{names[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    public = ["PAPER", *names]
    return getattr_, lambda: sorted(public), public
