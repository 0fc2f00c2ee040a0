"""What region-adaptive sampling is worth at equal time: digits drawn by it, and by as many dense steps as take as long."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from everyformer.catalog import Job, Measurement, Panel
from everyformer.lab.measure import median, side_by_side
from everyformer.lab.quality import frechet_distance
from everyformer.papers.ras.digits import SIDE, digits, judge, painter
from everyformer.papers.ras.method import Schedule, draw_updates
from everyformer.papers.ras.miniature import follow
from everyformer.papers.ras.pipelines import accelerate

STEPS = 10
SETTINGS: dict[str, Any] = {
    "sample_ratio": 0.25, "dense_steps": 2, "reset_steps": (6,), "metric": "l2norm", "high_ratio": 1.0,
    "starvation": -0.5,
}  # fmt: skip
CHUNK = 50  # digits drawn together
RAS, EQUAL, FULL = "region-adaptive", "dense, equal time", f"dense, {STEPS} steps"


@dataclasses.dataclass(frozen=True)
class Size:
    """Digits drawn to measure a distance, and rounds of timing."""

    drawn: int
    rounds: int


SIZES = {"smoke": Size(20, 1), "cpu": Size(500, 5), "paper": Size(10_000, 5)}


def dense_steps_of(seconds: float, dense: float) -> int:
    """The fewest dense steps that take at least ``seconds``, where ``STEPS`` of them take ``dense``: 1 to ``STEPS``."""
    return min(STEPS, max(1, math.ceil(STEPS * seconds / dense)))


def run(job: Job) -> Measurement:
    """Time both, give dense sampling the steps that take as long, and compare distances to held-out digits."""
    size = SIZES[job.scale]
    model, measure = painter(job.scale, job.device), judge(job.scale, job.device)
    scheduler = FlowMatchEulerDiscreteScheduler()
    maps: list[Tensor] = []

    def dense(steps: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda noise, labels: follow(model, scheduler, noise, labels, steps)

    def adaptive(noise: Tensor, labels: Tensor) -> Tensor:
        with accelerate(model, scheduler=scheduler, **SETTINGS) as sampling:
            drawn = follow(model, scheduler, noise, labels, STEPS)
        maps[:] = sampling.updates
        return drawn

    generator = torch.Generator().manual_seed(10_000 + job.seed)
    noise = torch.randn(size.drawn, 1, SIDE, SIDE, generator=generator).to(job.device)
    labels = torch.arange(size.drawn, device=job.device) % 10
    first = noise[:CHUNK], labels[:CHUNK]
    times = side_by_side(
        {RAS: lambda: adaptive(*first), FULL: lambda: dense(STEPS)(*first)}, rounds=size.rounds, device=job.device
    )
    seconds = {name: median(values) for name, values in times.items()}
    equal = dense_steps_of(seconds[RAS], seconds[FULL])
    pictured = maps[:]

    natural = measure.features(digits(job.scale)[1][0].to(job.device))
    distances, agreement, drawings = {}, {}, {}
    for name, draw in {RAS: adaptive, EQUAL: dense(equal), FULL: dense(STEPS)}.items():
        chunks = zip(noise.split(CHUNK), labels.split(CHUNK), strict=True)
        drawn = torch.cat([draw(*chunk) for chunk in chunks]).clamp(-1, 1)
        distances[name] = frechet_distance(measure.features(drawn), natural)
        agreement[name] = float((measure(drawn).argmax(-1) == labels).float().mean())
        drawings[name] = drawn[:10].cpu()

    extras = {f"Fréchet distance, {name}": value for name, value in distances.items()}
    extras |= {f"class agreement, {name} (%)": 100 * value for name, value in agreement.items()}
    extras |= {f"seconds for {len(first[0])} digits, {name}": value for name, value in seconds.items()}
    bound = Schedule(SETTINGS["sample_ratio"], SETTINGS["dense_steps"], SETTINGS["reset_steps"]).bound(STEPS)
    extras |= {"dense steps of equal time": float(equal), "dense steps' worth of tokens": STEPS / bound}
    pictures = torch.cat([torch.cat(list(drawn[:, 0]), dim=1) for drawn in drawings.values()], dim=0)
    panels = (
        Panel("Distance to held-out digits", "", "Fréchet distance",
              {"": ([0.0, 1.0, 2.0], list(distances.values()))}, kind="bar", ticks=list(distances)),
        Panel(f"Digits: {', '.join(drawings)}", "pixel", "pixel", kind="heat", grid=pictures.tolist()),
        Panel("Tokens that run at each step (bright), first digit", "token", "token", kind="heat",
              grid=draw_updates(pictured).tolist()),
    )  # fmt: skip
    return Measurement(distances[RAS], distances[EQUAL], extras, panels)
