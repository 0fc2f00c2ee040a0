"""Evolutionary search among sub-networks under a limit of multiply-adds (arXiv 2109.00642, section 4).

The first round draws networks at random; every further one mutates and crosses the best of all rounds before. All
that is evaluated is kept in a JSON file as soon as it is finished, and a search that was interrupted goes on from there.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import multiprocessing
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from everyformer.files import write_atomic
from everyformer.papers.vit_resnas.model import Definition, ViTResNAS, checked, stripped
from everyformer.papers.vit_resnas.supernet import Genes, SuperNet

Evaluate = Callable[[ViTResNAS], float]
Tasks = Sequence[tuple[int, Definition]]
Run = Callable[[Tasks], Iterator[tuple[int, float]]]

LEAST = 0.975  # candidates use at least this part of the limit
TRIES = 100  # proposals for one candidate before a duplicate is let in
PATIENCE = 10_000  # proposals before it is an error that none fits


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An evaluated network: its round and place there, its definition (removed blocks included), cost and score."""

    round: int
    index: int
    architecture: Definition
    macs: int
    score: float


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search evaluated, in the order of rounds."""

    history: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The highest score; the first of equals."""
        return max(self.history, key=lambda candidate: candidate.score)

    @property
    def pareto(self) -> tuple[Candidate, ...]:
        """The networks that no other one beats in both cost and score, cheapest first."""
        front: list[Candidate] = []
        for candidate in sorted(self.history, key=lambda one: (one.macs, -one.score)):
            if not front or candidate.score > front[-1].score:
                front.append(candidate)
        return tuple(front)

    def plot(self, path: str | Path) -> Path:
        """Write a picture (its kind by the file's ending) of cost and score of all networks, with the Pareto front."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axis = figure.subplots()
        costs = [candidate.macs / 1e6 for candidate in self.history]
        points = axis.scatter(costs, [one.score for one in self.history], c=[one.round for one in self.history], s=12)
        figure.colorbar(points, label="round")
        axis.step([one.macs / 1e6 for one in self.pareto], [one.score for one in self.pareto], where="post", c="black")
        axis.set(xlabel="multiply-adds in M", ylabel="score", title="Networks and their Pareto front")
        content = io.BytesIO()
        figure.savefig(content, format=Path(path).suffix.removeprefix(".") or "png")
        return write_atomic(Path(path), content.getvalue())


def search(
    supernet: SuperNet,
    evaluate: Evaluate,
    max_macs: float,
    *,
    initial: int = 500,
    rounds: int = 20,
    parents: int = 75,
    mutations: int = 75,
    crossovers: int = 75,
    probability: float = 0.3,
    seed: int = 0,
    resume: str | Path | None = None,
    workers: int | None = None,
    engine: Literal["processes", "ray"] = "processes",
) -> Found:
    """The networks of ``supernet``'s space that were tried, and the best of them.

    Args:
        supernet: trained; sub-networks inherit its weights.
        evaluate: the score of a network in evaluation mode, higher is better and the same whenever it is asked. With
            ``workers`` it is sent to other processes, so it must be a function of a module (or a ``partial`` of one).
        max_macs: the limit of multiply-adds; candidates use between 97.5% and all of it.
        initial: random networks in the first round.
        rounds: rounds, the random one included: 1 is random search.
        parents: the best networks so far, from which the next round is made.
        mutations, crossovers: networks per round that come from one parent, and from two.
        probability: chance that a mutation draws a choice anew.
        seed: of the search; the outcome depends on nothing else.
        resume: a JSON file that keeps all evaluations; a search of the same settings and weights goes on from it.
        workers: processes that evaluate, one per core by default, 0 for this process alone. More than 0 needs the
            ``if __name__ == "__main__":`` of every script that starts processes.
        engine: ``"ray"`` spreads evaluations over a Ray cluster (the one that is connected, or this machine).

    Raises:
        ValueError: a limit below the smallest or above the largest network, or that no network meets; numbers that
            cannot be used; a file of another search; a score that is not finite.
        ModuleNotFoundError: Ray is asked for and not installed.
    """
    smallest, largest = (supernet.macs(network) for network in (supernet.space.smallest, supernet.space.largest))
    if not smallest <= max_macs <= largest:
        raise ValueError(
            f"max_macs must be from {smallest:,} (smallest network) to {largest:,} (largest), got {max_macs}"
        )
    if initial < 1 or rounds < 1 or min(mutations, crossovers) < 0 or not 0 < probability <= 1:
        raise ValueError(
            "initial and rounds must be at least 1, mutations and crossovers at least 0, probability above 0 and at "
            f"most 1, got {initial}, {rounds}, {mutations}, {crossovers} and {probability}"
        )
    if rounds > 1 and not 2 <= parents <= initial:
        raise ValueError(f"parents must be from 2 to initial={initial}, got {parents}")
    if engine not in ("processes", "ray"):
        raise ValueError(f"engine must be 'processes' or 'ray', got {engine!r}")
    settings = {
        "max_macs": max_macs, "initial": initial, "parents": parents, "mutations": mutations,
        "crossovers": crossovers, "probability": probability, "seed": seed,
        "space": json.loads(json.dumps(dataclasses.asdict(supernet.space))), "weights": fingerprint(supernet),
    }  # fmt: skip
    done = {(one.round, one.index): one for one in _kept(resume, settings)}
    maker = _Maker(supernet, max_macs, probability)
    total = initial + (rounds - 1) * (mutations + crossovers)
    with _progress(total) as show, _engine(supernet, evaluate, workers, engine) as run:
        for turn in range(rounds):
            # A generator per round: what a round proposes hangs on the history before it, not on interruptions.
            rng = random.Random(f"{seed} {turn}")
            before = [done[key] for key in sorted(done) if key[0] < turn]
            if turn == 0:
                proposed = maker.random(rng, initial)
            else:
                best = sorted(before, key=lambda one: -one.score)[:parents]
                proposed = maker.evolve(rng, before, best, mutations, crossovers)
            tasks = [(place, network) for place, network in enumerate(proposed) if (turn, place) not in done]
            show(len(done), _top(done))
            for place, score in run(tasks):
                if not math.isfinite(score):
                    raise ValueError(f"evaluate gave {score} for {stripped(proposed[place])}")
                network = proposed[place]
                done[turn, place] = Candidate(turn, place, network, supernet.macs(network), float(score))
                if resume is not None:
                    _keep(resume, settings, done.values())
                show(len(done), _top(done))
    return Found(tuple(done[key] for key in sorted(done) if key[0] < rounds))


class _Maker:
    """Proposes networks that meet the limit of multiply-adds."""

    def __init__(self, supernet: SuperNet, limit: float, probability: float) -> None:
        self.supernet, self.space, self.limit, self.probability = supernet, supernet.space, limit, probability
        self.points = supernet.space.points

    def random(self, rng: random.Random, count: int) -> list[Definition]:
        """Different networks at random: cut down to the limit from random widths and depths, one choice at a time."""
        seen: set[Definition] = set()
        return [self._new(seen, lambda: self._cut_down(rng)) for _ in range(count)]

    def evolve(
        self,
        rng: random.Random,
        before: Sequence[Candidate],
        parents: Sequence[Candidate],
        mutations: int,
        crossovers: int,
    ) -> list[Definition]:
        """The next round."""
        seen = {stripped(one.architecture) for one in before}
        genes = [self.space.genes(one.architecture) for one in parents]
        mutated = [self._new(seen, lambda: self._mutate(rng, rng.choice(genes))) for _ in range(mutations)]
        return mutated + [self._new(seen, lambda: self._cross(rng, *rng.sample(genes, 2))) for _ in range(crossovers)]

    def _new(self, seen: set[Definition], propose: Callable[[], Genes]) -> Definition:
        """A proposal within the limits that was not seen; when there seems to be none left, one that was."""
        fitting = None
        for turn in range(PATIENCE):
            network = self.space.definition(propose())
            if LEAST * self.limit <= self.supernet.macs(network) <= self.limit:
                fitting = network
                if stripped(network) not in seen:
                    break
            if fitting and turn >= TRIES:
                break
        if fitting is None:
            raise ValueError(
                f"max_macs={self.limit} is met by none of {PATIENCE} proposed networks: they must cost between "
                f"{LEAST:.1%} and all of it"
            )
        seen.add(stripped(fitting))
        return fitting

    def _cut_down(self, rng: random.Random) -> Genes:
        free = [point.kind in ("dim", "exists") for point in self.points]
        for _ in range(PATIENCE):
            genes = [
                rng.choice(point.options) if drawn else point.options[0]
                for point, drawn in zip(self.points, free, strict=True)
            ]
            if self._cost(genes) >= LEAST * self.limit:
                break
        step = 0
        while self._cost(genes) > self.limit:
            # Widths and depths stay as drawn unless heads and hidden units alone do not suffice.
            lowerable = [
                place
                for place, point in enumerate(self.points)
                if genes[place] != point.options[-1] and (step >= TRIES or not free[place])
            ]
            step += 1
            if lowerable:
                place = rng.choice(lowerable)
                options = self.points[place].options
                genes[place] = max(option for option in options if option < genes[place])
            else:
                step = max(step, TRIES)
        return tuple(genes)

    def _mutate(self, rng: random.Random, genes: Genes) -> Genes:
        return tuple(
            gene if rng.random() >= self.probability
            else 1 - gene if point.kind == "exists"
            else rng.choice(point.options)
            for point, gene in zip(self.points, genes, strict=True)
        )  # fmt: skip

    def _cross(self, rng: random.Random, first: Genes, second: Genes) -> Genes:
        return tuple(rng.choice(pair) for pair in zip(first, second, strict=True))

    def _cost(self, genes: Sequence[int]) -> int:
        return self.supernet.macs(self.space.definition(genes))


@contextlib.contextmanager
def _engine(supernet: SuperNet, evaluate: Evaluate, workers: int | None, engine: str) -> Iterator[Run]:
    """A function that evaluates tasks and gives the scores as they are finished."""
    count = os.cpu_count() or 1 if workers is None else workers
    if count < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if engine == "ray":
        with _ray(supernet, evaluate, workers) as run:
            yield run
    elif count == 0:
        yield lambda tasks: ((place, _score(supernet, evaluate, network)) for place, network in tasks)
    else:
        # Fresh processes: a fork of one whose threads hold locks may hang.
        context = multiprocessing.get_context("spawn")
        shared = (supernet, evaluate, max(1, torch.get_num_threads() // count))
        pool = concurrent.futures.ProcessPoolExecutor(count, context, _begin, shared)

        def run(tasks: Tasks) -> Iterator[tuple[int, float]]:
            places = {pool.submit(_task, network): place for place, network in tasks}
            for future in concurrent.futures.as_completed(places):
                yield places[future], future.result()

        try:
            yield run
        finally:
            # After an error or Ctrl-C the rest of the round is not waited for.
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _ray(supernet: SuperNet, evaluate: Evaluate, workers: int | None) -> Iterator[Run]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("engine='ray' needs Ray: pip install 'everyformer[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(num_cpus=workers or None, include_dashboard=False, log_to_driver=False)
    try:
        remote = ray.remote(_score)
        shared = ray.put(supernet), ray.put(evaluate)

        def run(tasks: Tasks) -> Iterator[tuple[int, float]]:
            places = {remote.remote(*shared, network): place for place, network in tasks}
            while places:
                (finished,), _ = ray.wait(list(places), num_returns=1)
                yield places.pop(finished), ray.get(finished)

        yield run
    finally:
        if ours:
            ray.shutdown()


def _score(supernet: SuperNet, evaluate: Evaluate, network: Definition) -> float:
    with torch.no_grad():
        return float(evaluate(supernet.extract(network).eval()))


_worker: tuple[SuperNet, Evaluate]


def _begin(supernet: SuperNet, evaluate: Evaluate, threads: int) -> None:
    """Keep in a worker process what all its tasks share."""
    global _worker
    torch.set_num_threads(threads)
    _worker = supernet, evaluate


def _task(network: Definition) -> float:
    return _score(*_worker, network)


def fingerprint(supernet: SuperNet) -> str:
    """A checksum of the weights, by which a file knows its super-network."""
    digest = hashlib.sha256()
    for name, tensor in supernet.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _keep(file: str | Path, settings: dict[str, Any], done: Iterable[Candidate]) -> None:
    history = [dataclasses.asdict(one) for one in sorted(done, key=lambda one: (one.round, one.index))]
    write_atomic(Path(file), json.dumps({"settings": settings, "history": history}) + "\n")


def load(file: str | Path) -> Found:
    """What a search has kept in ``file`` so far, also while it still runs.

    Raises:
        ValueError: it is not such a file.
    """
    return Found(tuple(_read(file)[1]))


def _read(file: str | Path) -> tuple[dict[str, Any], list[Candidate]]:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        history = [Candidate(**{**one, "architecture": checked(one["architecture"])}) for one in content["history"]]
        return content["settings"], history
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a file of a search: {error!r}") from error


def _kept(file: str | Path | None, settings: dict[str, Any]) -> list[Candidate]:
    """The evaluations in a file; ``rounds`` may differ, so that a search can be made longer."""
    if file is None or not Path(file).exists():
        return []
    found, history = _read(file)
    differ = sorted(name for name in settings if found.get(name) != settings[name])
    if differ:
        raise ValueError(f"resume={file} holds a search of other {', '.join(differ)}; remove it first")
    return history


def _top(done: dict[tuple[int, int], Candidate]) -> float:
    return max((one.score for one in done.values()), default=math.nan)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int, float], None]]:
    """A progress line on the terminal; nothing where there is none."""
    if not sys.stderr.isatty():
        yield lambda count, best: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    best_column = TextColumn("best {task.fields[best]:.4g}")
    columns = (TextColumn("search"), BarColumn(), MofNCompleteColumn(), best_column, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, best=math.nan)
        yield lambda count, best: progress.update(task, completed=count, best=best)
