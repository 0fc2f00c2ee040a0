"""The claims: how precise the construction is, how wide, beside training, and what positions are for."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab.growth import exponent
from everyformer.lab.train import fit
from everyformer.papers.uat import ridge
from everyformer.papers.uat.construction import construct
from everyformer.papers.uat.contrast import hard_partition, untrained
from everyformer.papers.uat.error import sup_error
from everyformer.papers.uat.maps import Map, family
from everyformer.papers.uat.model import UniversalTransformer
from everyformer.papers.uat.target import asymmetry

SHAPES = ((2, 1), (1, 2), (3, 1))
EPS = (0.3, 0.1, 0.03)
REFUSED = 10.0  # what a refusal counts as, in units of the precision asked for
ORDER = "map, in the order of the figures recorded"
PLACES: tuple[Literal["grid", "random", "adversarial"], ...] = ("grid", "random", "adversarial")


def _sizes(job: Job) -> tuple[tuple[tuple[int, int], ...], tuple[float, ...]]:
    return (((2, 1),), EPS[:2]) if job.scale == "smoke" else (SHAPES, EPS)


def _built(item: Map, shape: tuple[int, int], eps: float, refine: bool = True) -> UniversalTransformer | None:
    """The construction for a map of the family, or ``None`` where it is refused."""
    tokens, dim = shape
    try:
        return construct(item.f, tokens, dim, dim, eps, lipschitz=item.lipschitz, refine=refine)
    except ridge.TooLarge:
        return None


def _measured(model: UniversalTransformer, item: Map, seed: int) -> float:
    return max(sup_error(model, item.f, place, seed=seed) for place in PLACES)


def precision(job: Job) -> Measurement:
    """Build every map at every precision; the metric is the largest error over the precision asked for."""
    shapes, levels = _sizes(job)
    ratios: dict[tuple[str, tuple[int, int], float], float] = {}
    seconds, refused, kinds, late = [], 0, {"grid": 0, "sampled": 0}, 0.0
    for shape in shapes:
        for item in family(*shape, job.seed):
            for eps in levels:
                began = time.perf_counter()
                model = _built(item, shape, eps)
                seconds.append(time.perf_counter() - began)
                if model is None:
                    refused += 1
                    ratios[item.name, shape, eps] = REFUSED
                    continue
                ratios[item.name, shape, eps] = _measured(model, item, job.seed) / eps
                kinds[model.certificate.kind] += 1
                if math.prod(shape) <= 2:
                    late = max(late, model.certificate.total / eps)
    closed = []
    for item in family(2, 1, job.seed):
        for eps in levels[:2]:
            model = _built(item, (2, 1), eps, refine=False)
            closed.append(sup_error(model, item.f, "random", 2000, job.seed) / eps if model else REFUSED)
    extras = {
        "refused": float(refused),
        "certified over the whole box": float(kinds["grid"]),
        "measured at points only (3 inputs)": float(kinds["sampled"]),
        "largest certified bound over precision, 2 inputs": late,
        "largest build time (s)": max(seconds),
        "median build time (s)": sorted(seconds)[len(seconds) // 2],
        "closed form, 2 tokens, precision .3 and .1: largest error over precision": max(closed),
    }
    for shape in shapes:
        extras[f"{shape[0]} tokens of {shape[1]}: largest error over precision"] = max(
            value for (_, place, _), value in ratios.items() if place == shape
        )
    names = [item.name for item in family(2, 1, job.seed)][1:]  # the mean is exact
    panels = [
        Panel(
            f"{shape[0]} tokens of {shape[1]}",
            "precision asked for",
            "largest error over precision",
            {name: (list(levels), [ratios[name, shape, eps] for eps in levels]) for name in names}
            | {"the bound": (list(levels), [1.0] * len(levels))},
            log_x=True,
        )
        for shape in shapes
    ]
    return Measurement(max(ratios.values()), 1.0, extras, (*panels, *_borders(job)))


def _borders(job: Job) -> Iterator[Panel]:
    """The hard partition: its largest error against the sharpness of attention, for two numbers of cells."""
    item = family(2, 1, job.seed)[5]
    sharpness = [10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4]
    lines = {}
    for per_axis in (8, 16):
        errors = [sup_error(hard_partition(item.f, 2, 1, 1, per_axis, s), item.f, seed=job.seed) for s in sharpness]
        lines[f"{per_axis * per_axis} cells"] = (sharpness, errors)
    model = _built(item, (2, 1), 0.03)
    if model is not None:
        error = _measured(model, item, job.seed)
        lines[f"construction, {model.width} neurons"] = (sharpness, [error] * len(sharpness))
    yield Panel("Hard partition, sin(3 x1 x2)", "sharpness", "largest error", lines, log_x=True, log_y=True)


def _slope(eps: tuple[float, ...], widths: list[float]) -> float:
    """The power of 1/eps with which the width grows."""
    return -exponent(eps, widths)


def width(job: Job) -> Measurement:
    """Slopes of the width used and of the width that the bound asks for, per input dimension; the steepest counts."""
    shapes, levels = _sizes(job)
    used: dict[tuple[str, tuple[int, int]], list[float]] = {}
    asked: dict[tuple[str, tuple[int, int]], list[float]] = {}
    extras: dict[str, float] = {}
    panels = []
    for shape in shapes:
        for item in family(*shape, job.seed):
            models = [_built(item, shape, eps) for eps in levels]
            wide = [eps for eps, model in zip(levels, models, strict=True) if model is None]
            if wide:
                raise ValueError(f"{item.name} with {shape} was refused at {wide}: it has no width")
            used[item.name, shape] = [float(model.width) for model in models if model]
            asked[item.name, shape] = [model.asked_width for model in models if model]
        here = {name: values for (name, place), values in used.items() if place == shape}
        label = f"{shape[0]} tokens of {shape[1]}"
        extras |= {f"{label}, {name}: width at {levels[-1]}": values[-1] for name, values in here.items()}
        steepest = max(_slope(levels, values) for values in here.values())
        extras[f"{label}: steepest slope"] = steepest
        inverse = [1 / eps for eps in levels]
        lines = {
            name: (inverse, values) for name, values in here.items() if name != "mean"
        }  # never more than one per input
        worst = max((values for (_, place), values in asked.items() if place == shape), key=lambda values: values[-1])
        lines["bound, steepest map"] = (inverse, worst)
        panels.append(Panel(label, "1 / precision", "hidden neurons", lines, log_x=True, log_y=True))
    method = max(_slope(levels, values) / math.prod(shape) for (_, shape), values in used.items())
    baseline = max(_slope(levels, values) / math.prod(shape) for (_, shape), values in asked.items())
    return Measurement(method, baseline, extras, tuple(panels))


def _trained(
    job: Job, model: UniversalTransformer, item: Map, steps: int, rate: float, name: str
) -> UniversalTransformer:
    """The same layer from random weights: Adam on the mean squared error of new random points."""
    torch.manual_seed(job.seed)
    fresh = untrained(model)

    def batches(epoch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * job.seed + epoch)
        for _ in range(100):
            yield torch.rand(256, model.tokens, model.dim, generator=generator)

    fit(
        fresh,
        lambda net, x: (net(x) - item.f(x)).square().mean(),
        batches,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=rate),
        scheduler=lambda adam: torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps),
        schedule_every="step",
        steps=steps,
        folder=job.folder / name,
        seed=job.seed,
    )
    return fresh.eval()


def trained(job: Job) -> Measurement:
    """Largest error of construction and training at equal width; the best of two learning rates, by that very error."""
    smoke = job.scale == "smoke"
    eps, steps, rates = (0.1, 50, (1e-2,)) if smoke else (0.03, 1000, (1e-2, 3e-3))
    built, learnt = [], []
    rms: dict[str, list[float]] = {"constructed": [], "trained": []}
    extras, labels = {}, []
    spent = {"constructed": 0.0, "trained": 0.0}
    for shape in ((2, 1),) if smoke else ((2, 1), (3, 1)):
        points = torch.rand(4096, *shape, generator=torch.Generator().manual_seed(job.seed))
        for index, item in enumerate(family(*shape, job.seed)):
            began = time.perf_counter()
            model = _built(item, shape, eps)
            if model is None:
                raise ValueError(f"{item.name} with {shape} was refused: there is nothing to compare with")
            spent["constructed"] += time.perf_counter() - began
            began = time.perf_counter()
            runs = [_trained(job, model, item, steps, rate, f"{shape[0]}-{index}-{rate:g}") for rate in rates]
            spent["trained"] += time.perf_counter() - began
            scores = [_measured(run, item, job.seed) for run in runs]
            best = runs[scores.index(min(scores))]
            built.append(_measured(model, item, job.seed))
            learnt.append(min(scores))
            with torch.no_grad():
                for name, net in (("constructed", model), ("trained", best)):
                    rms[name].append(float((net(points) - item.f(points)).square().mean().sqrt()))
            labels.append(f"{item.name}, {shape[0]}")
            extras[f"{item.name}, {shape[0]} tokens: trained over constructed"] = learnt[-1] / max(built[-1], 1e-9)
    for name in rms:
        extras[f"{name}: root mean square error, mean over maps"] = sum(rms[name]) / len(rms[name])
        extras[f"{name}: seconds in all"] = spent[name]
    places = [float(i) for i in range(len(labels))]
    ticks = [str(i + 1) for i in range(len(labels))]
    errors = {"constructed": (places, built), "trained": (places, learnt)}
    means = {name: (places, values) for name, values in rms.items()}
    panels = (
        Panel("Largest error at equal width", ORDER, "largest error", errors, kind="bar", ticks=ticks),
        Panel("Root mean square error", ORDER, "error", means, kind="bar", ticks=ticks),
    )
    return Measurement(sum(built) / len(built), sum(learnt) / len(learnt), extras, panels)


def positions(job: Job) -> Measurement:
    """Error with and without positions over half the asymmetry, on the maps that are not equivariant."""
    without: list[float] = []
    with_positions: list[float] = []
    labels, extras = [], {}
    for shape in ((2, 1),) if job.scale == "smoke" else ((2, 1), (3, 1)):
        for item in family(*shape, job.seed):
            gap, pair = asymmetry(item.f, *shape, shape[1])
            if gap < 1e-6:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the map is not equivariant is the point here
                blind = construct(item.f, *shape, shape[1], 0.1, lipschitz=item.lipschitz, positions=False)
            seeing = _built(item, shape, 0.1)
            if seeing is None:
                raise ValueError(f"{item.name} with {shape} was refused at 0.1: there is nothing to compare with")
            for model, found in ((blind, without), (seeing, with_positions)):
                found.append(max(_measured(model, item, job.seed), sup_error(model, item.f, pair)) / (gap / 2))
            labels.append(f"{item.name}, {shape[0]}")
            extras[f"{item.name}, {shape[0]} tokens: half the asymmetry"] = gap / 2
    places = [float(i) for i in range(len(labels))]
    lines = {"without positions": (places, without), "with positions": (places, with_positions)}
    ticks = [str(i + 1) for i in range(len(labels))]
    panel = Panel(
        "Error without and with positions", ORDER, "error over half the asymmetry", lines, kind="bar", ticks=ticks
    )
    return Measurement(min(without), max(with_positions), extras, (panel,))


def plan() -> Plan:
    """The paper is a theorem without experiments; its claim is checked in full by the cpu scale."""
    model = construct(family(3, 1, 0)[5].f, 3, 1, 1, 0.03, lipschitz=3.0, refine=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = 6.0 * model.tokens * parameters
    notes = "one sequence through the layer built for the third row of maps at precision .03; no training"
    return Plan(parameters, flops, 16.0 * parameters, "everyformer run uat --scale paper", notes)
