"""The survey's three studies: robustness to long input, depth, and seasonal-trend decomposition."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import torch

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab.measure import count_flops, count_parameters, median, peak_extra_bytes, side_by_side
from everyformer.papers.ts_survey import harness
from everyformer.papers.ts_survey.harness import INSIDE, NAIVE, Budget, Cell, Variant
from everyformer.papers.ts_survey.model import POINTWISE
from everyformer.papers.ts_survey.sweep import AXES, Study, study

BUDGETS = {
    "smoke": Budget(steps=6, batch=8, dim=16, ff=32, heads=2, dropout=0.0, stride=128),
    "cpu": Budget(steps=100, batch=16, dim=32, ff=64, heads=2, dropout=0.0, stride=8),
    "paper": Budget("ettm2", steps=10_800, rate=1e-4, batch=32, dim=512, ff=2048, heads=8, dropout=0.1, stride=1),
}
STEADY = ("patchtst", "itransformer", "dlinear")
# Reformer's look-back of 720 would take a fifth of all the time there is at the cpu scale.
STEPWISE = {"smoke": POINTWISE, "cpu": ("vanilla", "informer", "logsparse"), "paper": POINTWISE}
LENGTHS = {"smoke": (48, 96), "cpu": (96, 192, 720), "paper": (96, 192, 336, 720, 1440)}
HORIZON = {"smoke": 24, "cpu": 96, "paper": 96}
DEPTHS = {"smoke": (3, 4), "cpu": (1, 3, 6, 12), "paper": (1, 2, 3, 6, 12, 24, 48)}
DEEPENED = ("vanilla", "informer", "autoformer", "patchtst", "itransformer")
SHALLOW = 3  # layers, the least of those that the survey found best
DEEPENED_ON = {"smoke": "etth2", "cpu": "etth1", "paper": "ettm2"}
HORIZONS = {"smoke": (24, 48), "cpu": (96, 336), "paper": (96, 192, 336, 720)}
SEPARATED = {
    "smoke": ("vanilla", "autoformer"),
    "cpu": ("vanilla", "informer", "logsparse", "autoformer"),
    "paper": (*POINTWISE, "autoformer", "fedformer_lite"),
}
VARIANTS: tuple[Variant, ...] = ("without", "with", "normalised")
BESIDE = {"smoke": (), "cpu": ("etth1",), "paper": ("etth1", "etth2")}  # sets for the shortest horizon alone


def _run(job: Job, models: tuple[str, ...], *, data: str | None = None, **sweep: Any) -> Study:
    """A study of the scale's budget, on another set where ``data`` names one."""
    budget = BUDGETS[job.scale] if data is None else dataclasses.replace(BUDGETS[job.scale], data=data)
    return study(models, budget=budget, seed=job.seed, device=job.device, precision=job.precision, **sweep)


def _cells(found: Study) -> dict[str, float]:
    """Every figure of a study's table that is one; a training that diverged is counted instead."""
    kept = {f"MSE, {row.name}, {found.axis} {getattr(row, found.axis)}": row.mse for row in found.rows}
    whole = {name: value for name, value in kept.items() if value == value}
    return whole | ({"diverged": float(len(kept) - len(whole))} if len(whole) < len(kept) else {})


def _panel(found: Study, title: str, models: tuple[str, ...] = (), log_y: bool = True) -> Panel:
    """Error along the axis of a study, for all that is in its table or for some models."""
    lines = {name: line for name, line in found.lines().items() if not models or name in models}
    return Panel(title, AXES[found.axis], "test MSE", lines, log_x=found.axis == "layers", log_y=log_y)


def _lengthened(job: Job) -> tuple[dict[str, float], dict[str, float], tuple[Panel, ...]]:
    """The ratio of each model's error at the longest look-back to that at the shortest, the figures, the plots."""
    lengths = LENGTHS[job.scale]
    stepwise = STEPWISE[job.scale]
    models = (*stepwise, *INSIDE, "patchtst", "itransformer")
    found = _run(job, models, lengths=lengths, lookback=lengths[0], horizon=HORIZON[job.scale])
    ratios = {name: found.at(name, lengths[-1]).mse / found.at(name, lengths[0]).mse for name in (*models, "dlinear")}
    extras = {f"ratio, {name}": ratio for name, ratio in ratios.items()} | _cells(found)
    bars = Panel(
        f"Error with {lengths[-1]} steps, of that with {lengths[0]}", "", "ratio",
        {"ratio": ([float(i) for i in range(len(ratios))], list(ratios.values()))}, kind="bar", ticks=list(ratios),
    )  # fmt: skip
    steps = _panel(found, "A token per time step, and last day", (*stepwise, *INSIDE, "last day"))
    return ratios, extras, (steps, _panel(found, "Others, and simple forecasts", (*STEADY, *NAIVE)), bars)


def robustness(job: Job) -> Measurement:
    """The median ratio over models with a token per time step, beside the largest of those that are not."""
    ratios, extras, panels = _lengthened(job)
    stepwise = statistics.median(ratios[name] for name in STEPWISE[job.scale])
    return Measurement(stepwise, max(ratios[name] for name in STEADY), extras, panels)


def steady(job: Job) -> Measurement:
    """The same with sides changed."""
    ratios, extras, panels = _lengthened(job)
    stepwise = statistics.median(ratios[name] for name in STEPWISE[job.scale])
    return Measurement(max(ratios[name] for name in STEADY), stepwise, extras, panels)


def size(job: Job) -> Measurement:
    """The error with the most layers over that with three, median of five models; 1 is no change."""
    depths, smoke = DEPTHS[job.scale], job.scale == "smoke"
    budget = dataclasses.replace(BUDGETS[job.scale], data=DEEPENED_ON[job.scale])
    lookback, horizon = (48, 24) if smoke else (96, 96)
    found = _run(job, DEEPENED, data=budget.data, layers=depths, lookback=lookback, horizon=horizon)
    extras, ratios = _cells(found), []
    costs: dict[str, dict[str, tuple[list[float], list[float]]]] = {"seconds": {}, "MB": {}}
    for name in DEEPENED:
        errors = {depth: found.at(name, depth).mse for depth in depths}
        trained = {depth: mse for depth, mse in errors.items() if mse == mse}
        if trained:
            extras[f"best depth, {name}"] = float(min(trained, key=lambda depth: trained[depth]))
        if SHALLOW in trained:
            # A deep model that diverged counts as one with twice the error.
            ratios.append(errors[depths[-1]] / errors[SHALLOW] if depths[-1] in trained else 2.0)
            extras[f"MSE with {depths[-1]} layers / with {SHALLOW}, {name}"] = ratios[-1]
        for depth in depths:
            seconds, memory, parameters = _step_cost(Cell(name, lookback, horizon, depth), budget, job)
            extras[f"parameters, {name}, layers {depth}"] = float(parameters)
            for what, value in (("seconds", seconds), ("MB", memory)):
                extras[f"{what} a step, {name}, layers {depth}"] = value
                xs, ys = costs[what].setdefault(name, ([], []))
                xs.append(float(depth))
                ys.append(value)
    panels = (
        _panel(found, "Depth, the same steps of training", (*DEEPENED, "dlinear", "last day")),
        Panel("A training step", AXES["layers"], "seconds", costs["seconds"], log_x=True, log_y=True),
        Panel("Peak memory of a training step", AXES["layers"], "MB", costs["MB"], log_x=True, log_y=True),
    )
    return Measurement(statistics.median(ratios), 1.0, extras, panels)


def _step_cost(cell: Cell, budget: Budget, job: Job) -> tuple[float, float, int]:
    """Seconds and peak MB of forward and backward on one batch, and the model's parameters."""
    windows = harness.load(budget.data, cell.lookback, cell.horizon).train
    batch: Any = tuple(
        None if part is None else part.to(job.device) for part in windows.gather(torch.arange(budget.batch))
    )
    marks = 0 if windows.marks is None else windows.marks.shape[1]
    forecaster = cell.build(budget, windows.values.shape[1], marks).to(job.device)

    def step() -> None:
        harness.loss(forecaster, batch).backward()

    seconds = median(side_by_side({"step": step}, rounds=2, device=job.device)["step"])
    return seconds, peak_extra_bytes(step, job.device) / 2**20, count_parameters(forecaster)


def _separated(job: Job) -> tuple[Study, tuple[str, ...], tuple[int, ...]]:
    """Every model without decomposition, with it, and without it in normalised windows, at each horizon."""
    models, horizons = SEPARATED[job.scale], HORIZONS[job.scale]
    return _run(job, models, horizons=horizons, lookback=_lookback(job), variants=VARIANTS), models, horizons


def _lookback(job: Job) -> int:
    return 48 if job.scale == "smoke" else 96


def _promotion(found: Study, model: str, horizon: int, variant: str = "with") -> float:
    return 1 - found.at(model, horizon, variant).mse / found.at(model, horizon, "without").mse


def _of_decomposition(
    job: Job,
) -> tuple[Study, dict[int, float], dict[int, float], dict[str, float], tuple[Panel, ...]]:
    """The table, the mean promotion at each horizon by decomposition and by normalising, the figures, the plots."""
    found, models, horizons = _separated(job)
    extras = _cells(found)
    means: dict[str, dict[int, float]] = {"with": {}, "normalised": {}}
    for variant, of in means.items():
        for horizon in horizons:
            each = {model: _promotion(found, model, horizon, variant) for model in models}
            of[horizon] = statistics.fmean(each.values())
            extras |= {f"promotion (%), {variant}, {model}, {horizon}": 100 * gain for model, gain in each.items()}
    places = [float(index) for index in range(len(models))]
    bars = [
        Panel(
            f"Test error, {horizon} steps ahead", "", "test MSE",
            {
                variant: (places, [found.at(model, horizon, variant).mse for model in models])
                for variant in VARIANTS
            },
            kind="bar", ticks=list(models),
        )
        for horizon in (horizons[0], horizons[-1])
    ]  # fmt: skip
    for name in BESIDE[job.scale]:
        other = _run(job, models, data=name, horizons=horizons[:1], lookback=_lookback(job), variants=VARIANTS)
        extras |= {f"{name}: {cell}": value for cell, value in _cells(other).items()}
        for variant in means:
            gain = statistics.fmean(_promotion(other, model, horizons[0], variant) for model in models)
            extras[f"{name}: mean promotion (%), {variant}, {horizons[0]}"] = 100 * gain
    simple = Study(found.axis, tuple(row for row in found.rows if row.model in (*NAIVE, "dlinear", models[0])))
    return (
        found,
        means["with"],
        means["normalised"],
        extras,
        (*bars, _panel(simple, "Beside simple forecasts", log_y=False)),
    )


def decomposition(job: Job) -> Measurement:
    """Error with decomposition as a share of that without, mean of models and horizons; 1 is no change."""
    _, gained, _, extras, panels = _of_decomposition(job)
    return Measurement(1 - statistics.fmean(gained.values()), 1.0, extras, panels)


def horizon(job: Job) -> Measurement:
    """The mean promotion at the longest horizon beside that at the shortest."""
    _, gained, _, extras, panels = _of_decomposition(job)
    return Measurement(100 * gained[max(gained)], 100 * gained[min(gained)], extras, panels)


def confound(job: Job) -> Measurement:
    """Error with decomposition beside that with instance normalisation, both as shares of that with neither."""
    _, gained, normed, extras, panels = _of_decomposition(job)
    return Measurement(
        1 - statistics.fmean(gained.values()), 1 - statistics.fmean(normed.values()), extras, panels
    )  # fmt: skip


def _plan(claim: str, cell: Cell, notes: str) -> Plan:
    """One training step of a vanilla transformer at the paper's scale."""
    budget = BUDGETS["paper"]
    forecaster = cell.build(budget, 7, 5)
    marks = torch.zeros(1, cell.lookback + cell.horizon, 5)
    held = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    def step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            series = torch.zeros(1, cell.lookback, 7)
            out = forecaster(series, marks[:, : cell.lookback], marks[:, cell.lookback :]).sum()
        out.backward()

    flops = budget.batch * count_flops(step)
    parameters = count_parameters(forecaster)
    launch = f"everyformer run ts_survey.{claim} --scale paper --device cuda"
    return Plan(parameters, flops, 16 * parameters + budget.batch * held, launch, notes)


def plan_robustness() -> Plan:
    """The longest look-back."""
    return _plan("robustness", Cell("vanilla", 1440, 96), "one step of the vanilla transformer, 1,440 to 96, on ETTm2")


def plan_size() -> Plan:
    """Forty-eight layers."""
    return _plan("size", Cell("vanilla", 96, 96, 48), "one step of the vanilla transformer with 48 layers, on ETTm2")


def plan_decomposition() -> Plan:
    """The longest horizon."""
    cell = Cell("vanilla", 96, 720, variant="with")
    return _plan("decomposition", cell, "one step of the vanilla transformer with decomposition, 96 to 720, on ETTm2")
