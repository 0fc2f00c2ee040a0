"""Finding the coefficients on a handful of prompts, without a full-precision model (arXiv 2509.01624, section 3)."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
import torch
from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from everyformer.papers.qsched.method import Coefficients, QSchedScheduler

Images = Any
Scorer = Callable[[Images, Sequence[Any]], Tensor | float]
"""``(images, prompts) -> scores``, one per image or one number for all; higher is better."""
Generate = Callable[[Sequence[Any], QSchedScheduler, torch.Generator], Images]
"""``(prompts, scheduler, generator) -> images``."""
Method = Literal["cmaes", "tpe", "grid"]


def jaq_loss(compatibility: Scorer, quality: Scorer, *, k: float = 1.0) -> Callable[[Images, Sequence[Any]], float]:
    """JAQ: mean text-image compatibility + ``k`` * mean no-reference quality, to be maximised despite its name.

    The paper scores with HPSv2 and a quality map; any two scorers that take (images, prompts) can be put in.
    The function returned raises ``ValueError`` that names the scorer whose score is not finite.
    """

    def score(images: Images, prompts: Sequence[Any]) -> float:
        parts = {}
        for role, scorer in (("compatibility", compatibility), ("quality", quality)):
            parts[role] = float(torch.as_tensor(scorer(images, prompts)).float().mean())
            if not math.isfinite(parts[role]):
                raise ValueError(f"{role} must give finite scores, got {parts[role]} from {_name(scorer)}")
        return parts["compatibility"] + k * parts["quality"]

    return score


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a calibration found: the best coefficients, their score, and the score of all ones.

    ``history`` is the score of every trial, in order.
    """

    coefficients: Coefficients
    score: float
    uncalibrated: float
    history: tuple[float, ...]


def calibrate(
    pipe: Any,
    prompts: Sequence[Any],
    score: Callable[[Images, Sequence[Any]], float],
    *,
    steps: int,
    budget: int,
    scheduler: Any = None,
    method: Method = "cmaes",
    low: float = 0.8,
    high: float = 1.1,
    free_ends: bool = False,
    seed: int = 0,
    storage: Path | None = None,
    progress: bool = True,
    **options: Any,
) -> Calibration:
    """Search the lines of coefficients that give ``score`` its highest value on ``prompts``.

    Every trial generates from the same random numbers. The first has all coefficients 1, so that what is found never
    scores below the scheduler as it was.

    Args:
        pipe: a diffusers pipeline, called with ``prompts``, ``num_inference_steps``, ``generator`` and ``options``; or
            a callable ``(prompts, scheduler, generator, **options) -> images``. A pipeline's own scheduler is put back.
        score: ``(images, prompts) -> number``, higher is better; see :func:`jaq_loss`.
        steps: steps of the sampler, and so coefficients of each kind.
        budget: trials in all, including the first and those that ``storage`` already holds.
        scheduler: what to wrap; a pipeline's own by default, needed with a callable.
        method: ``cmaes``, ``tpe``, or ``grid``: as many values per coefficient as the budget allows, evenly spaced;
            what is left of the budget is random.
        low, high: where the coefficients are searched; the authors' defaults.
        free_ends: search the last step's coefficients as well; otherwise lines end at 1, as in the authors' search.
        storage: a file that keeps the trials. Calling again with the same file goes on where it was left.
        progress: show a bar on stderr.

    Raises:
        ValueError: ``prompts`` are empty, a number is out of range, the score is not finite (the coefficients are
            named), or ``storage`` holds another calibration.
        TypeError: the scheduler is missing or not supported.
    """
    names = ["model", "sample", *(["model_end", "sample_end"] if free_ends else [])]
    points = _grid_points(budget, len(names)) if method == "grid" else 0
    _check(prompts, steps, budget, method, low, high, points)
    original = getattr(pipe, "scheduler", None) if scheduler is None else scheduler
    if original is None:
        raise TypeError("scheduler must be given when pipe is not a diffusers pipeline with a scheduler of its own")
    QSchedScheduler.wrap(original, Coefficients.line(steps))  # an unsupported class is told before anything is written

    settings = {
        "prompts": hashlib.sha256(repr(list(prompts)).encode()).hexdigest(), "steps": steps, "method": method,
        "low": low, "high": high, "free_ends": free_ends, "seed": seed, "scheduler": type(original).__name__,
        "points": points,
    }  # fmt: skip
    study = _study(storage, settings)
    identity = dict.fromkeys(names, 1.0)
    _enqueue(study, [identity, *_grid(low, high, points, names)])
    done = len(_finished(study))
    study.sampler = _sampler(method, seed + done)

    columns = (TextColumn("calibration"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[best]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("", total=budget, completed=done, best="")
        for _ in range(done, budget):
            trial = study.ask()
            lines = Coefficients.line(steps, **{name: trial.suggest_float(name, low, high) for name in names})
            generator = torch.Generator().manual_seed(seed)
            images = _generate(pipe, prompts, QSchedScheduler.wrap(original, lines), generator, options)
            value = float(score(images, prompts))
            if not math.isfinite(value):
                study.tell(trial, state=TrialState.FAIL)
                raise ValueError(f"score must be finite, got {value} from {_name(score)} at {lines}")
            study.tell(trial, value)
            bar.update(task, advance=1, best=f"best {study.best_value:.4g}")
    finished = _finished(study)
    uncalibrated = next(trial.value for trial in finished if trial.params == identity)
    history = tuple(float(trial.value) for trial in finished)  # type: ignore[arg-type]
    return Calibration(Coefficients.line(steps, **study.best_params), study.best_value, uncalibrated, history)  # type: ignore[arg-type]


def _check(prompts: Sequence[Any], steps: int, budget: int, method: str, low: float, high: float, points: int) -> None:
    if not len(prompts):
        raise ValueError("prompts must hold at least one prompt")
    if method not in ("cmaes", "tpe", "grid"):
        raise ValueError(f"method must be cmaes, tpe or grid, got {method!r}")
    for name, number in (("steps", steps), ("budget", budget)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if not 0 < low <= 1 <= high < math.inf or low == high:
        raise ValueError(f"low and high must be positive and enclose 1, got {low} and {high}")
    if method == "grid" and points < 2:
        raise ValueError(f"budget must allow two values per coefficient for a grid, got {budget}")


def _grid_points(budget: int, dimensions: int) -> int:
    """The most values per coefficient whose combinations, and the trial of all ones, fit the budget."""
    points = 0
    while (points + 1) ** dimensions + 1 <= budget:
        points += 1
    return points


def _grid(low: float, high: float, points: int, names: list[str]) -> list[dict[str, float]]:
    values = torch.linspace(low, high, points, dtype=torch.float64).tolist()
    return [dict(zip(names, row, strict=True)) for row in itertools.product(values, repeat=len(names))]


def _enqueue(study: optuna.Study, wanted: list[dict[str, float]]) -> None:
    """Queue what has neither been tried nor is waiting; a trial that a kill left unfinished is tried again."""
    there = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state is TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        elif trial.state is not TrialState.FAIL:
            there.append(trial.system_attrs.get("fixed_params"))
    for values in wanted:
        if values not in there:
            study.enqueue_trial(values)


def _sampler(method: Method, seed: int) -> optuna.samplers.BaseSampler:
    """``seed`` counts the trials that are done, so that a resumed search does not repeat itself."""
    if method == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed)
    if method == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _study(storage: Path | None, settings: dict[str, Any]) -> optuna.Study:
    """The study in ``storage`` (in memory without one), which must have been made with the same settings."""
    backend = None
    if storage is not None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        storage.parent.mkdir(parents=True, exist_ok=True)
        backend = JournalStorage(JournalFileBackend(str(storage)))
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=backend, study_name="qsched", direction="maximize", load_if_exists=True)
    optuna.logging.set_verbosity(level)
    found = study.user_attrs.get("settings")
    if found is None:
        study.set_user_attr("settings", json.loads(json.dumps(settings)))
    elif found != settings:
        differ = sorted(key for key in settings if found.get(key) != settings[key])
        raise ValueError(f"storage {storage} holds a calibration of other {', '.join(differ)}; use another file")
    return study


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _generate(
    pipe: Any, prompts: Sequence[Any], scheduler: QSchedScheduler, generator: torch.Generator, options: dict[str, Any]
) -> Images:
    if not hasattr(pipe, "scheduler"):
        return pipe(prompts, scheduler, generator, **options)
    kept, pipe.scheduler = pipe.scheduler, scheduler
    try:
        steps = len(scheduler.coefficients.model)
        return pipe(list(prompts), num_inference_steps=steps, generator=generator, **options).images
    finally:
        pipe.scheduler = kept


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
