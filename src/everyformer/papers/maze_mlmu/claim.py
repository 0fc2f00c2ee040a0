"""The claims of MLM-U: mazes, time and accuracy, beside next-token training of as many parameters."""

from __future__ import annotations

import math
from typing import Any

import torch

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab.measure import count_flops, count_parameters, median, side_by_side
from everyformer.papers.maze_mlmu.maze import raster
from everyformer.papers.maze_mlmu.study import OBJECTIVES, SIZES, Objective, Student, Task, exact, task, trained, valid
from everyformer.papers.maze_mlmu.tokens import MazeTokens

LEVEL = 90.0  # per cent of the mazes that count as solved
SHARES = (4, 2, 1)  # what part of the mazes the sets to train on are, one in so many


def reached(places: list[float], accuracies: list[float]) -> float | None:
    """Where accuracy first comes to :data:`LEVEL`, on lines between the points; None where it never does."""
    before = (places[0], accuracies[0])
    for place, accuracy in zip(places, accuracies, strict=True):
        if accuracy >= LEVEL:
            last, low = before
            return place if accuracy == low else last + (place - last) * (LEVEL - low) / (accuracy - low)
        before = (place, accuracy)
    return None


def cost(found: dict[Objective, float | None], most: float) -> dict[Objective, float]:
    """What each objective needed, where one that never got there counts against the method.

    Next-token training is taken to need no more than the most that was tried, MLM-U twice that.
    """
    least = {"MLM-U": 2 * most, "next-token": most}
    return {name: least[name] if value is None else value for name, value in found.items()}


def samples(job: Job) -> Measurement:
    """How many times fewer mazes to train on bring accuracy to 90%, in as many steps."""
    mazes = task(job.scale, SIZES[job.scale].side, job.seed)
    counts = [len(mazes.train_prompts) // share for share in SHARES]
    lines: dict[str, tuple[list[float], list[float]]] = {}
    needed: dict[Objective, float | None] = {}
    for objective in OBJECTIVES:
        found = [exact(trained(job, objective, mazes, mazes=count).paths(mazes), mazes) for count in counts]
        doublings = reached([math.log2(count) for count in counts], found)
        needed[objective] = None if doublings is None else 2**doublings
        lines[objective] = ([float(count) for count in counts], found)
    mazes_needed = cost(needed, float(counts[-1]))
    extras = {f"mazes to {LEVEL:g}%, {name}": value for name, value in mazes_needed.items()}
    extras |= {f"reached, {name}": float(value is not None) for name, value in needed.items()}
    for name, (places, values) in lines.items():
        extras |= {f"accuracy, {name}, {place:g} mazes (%)": value for place, value in zip(places, values, strict=True)}
    panel = Panel("Unseen mazes solved", "mazes to train on", "%", lines, log_x=True)
    return Measurement(mazes_needed["next-token"] / mazes_needed["MLM-U"], 1.0, extras, (panel,))


def time(job: Job) -> Measurement:
    """Seconds of training to 90%: steps times what a step costs, taken side by side."""
    size = SIZES[job.scale]
    mazes = task(job.scale, size.side, job.seed)
    students = {objective: trained(job, objective, mazes) for objective in OBJECTIVES}
    seconds = step_seconds(students, mazes, size.batch, job.device)
    every = max(1, size.steps // size.checks)
    steps = [float(every * (index + 1)) for index in range(size.checks)]
    curves = {name: [float(value) for value in student.curve] for name, student in students.items()}
    needed = cost({name: reached(steps, curve) for name, curve in curves.items()}, steps[-1])
    spent = {name: needed[name] * seconds[name] for name in OBJECTIVES}
    extras = {f"steps to {LEVEL:g}%, {name}": value for name, value in needed.items()}
    extras |= {f"seconds a step, {name}": value for name, value in seconds.items()}
    extras |= {f"reached, {name}": float(max(curve) >= LEVEL) for name, curve in curves.items()}
    lines = {str(name): ([seconds[name] * step for step in steps], curve) for name, curve in curves.items()}
    panel = Panel("Unseen mazes solved on the way", "seconds of training", "%", lines)
    return Measurement(spent["MLM-U"], spent["next-token"], extras, (panel,))


def step_seconds(
    students: dict[Objective, Student], mazes: Task, batch: int, device: str, rounds: int = 15
) -> dict[Objective, float]:
    """Median seconds of a forward and backward pass of each."""
    prompts, paths = mazes.train_prompts[:batch].to(device), mazes.train_paths[:batch].to(device)

    def passed(student: Student) -> None:
        student.zero_grad()
        student(prompts, paths).backward()

    runs = {name: lambda student=student: passed(student) for name, student in students.items()}
    times = side_by_side({str(name): run for name, run in runs.items()}, rounds=rounds, warmup=3, device=device)
    return {name: median(times[name]) for name in students}


def accuracy(job: Job) -> Measurement:
    """Unseen mazes of the claim's main size that are solved after the same mazes and steps."""
    mazes = task(job.scale, SIZES[job.scale].side, job.seed)
    answers = {objective: trained(job, objective, mazes).paths(mazes) for objective in OBJECTIVES}
    scores = {name: exact(found, mazes) for name, found in answers.items()}
    extras = {f"valid paths, {name} (%)": valid(found, mazes) for name, found in answers.items()}
    by_confidence = trained(job, "MLM-U", mazes).paths(mazes, order="confidence")
    extras["accuracy, MLM-U, likeliest token first (%)"] = exact(by_confidence, mazes)
    extras |= {f"parameters, {name}": count_parameters(trained(job, name, mazes)) for name in OBJECTIVES}
    bars = {
        "shortest": ([0.0, 1.0], list(scores.values())),
        "valid": ([0.0, 1.0], [valid(found, mazes) for found in answers.values()]),
    }
    panels = (
        Panel("Paths through unseen mazes", "", "%", dict(bars), kind="bar", ticks=list(scores)),
        picture(mazes, answers),
    )
    return Measurement(scores["MLM-U"], scores["next-token"], extras, panels)


def picture(mazes: Task, answers: dict[Objective, list[Any]]) -> Panel:
    """A maze on which the two differ, if there is one, with the path and both answers."""
    pairs = list(zip(*answers.values(), strict=True))
    shown = next((index for index, (one, other) in enumerate(pairs) if one != other), 0)
    grids = [raster(mazes.test[shown], mazes.answers[shown], found[shown]) for found in answers.values()]
    rows = [[*left, 0.0, 0.0, *right] for left, right in zip(*grids, strict=True)]
    title = f"One maze: {' and '.join(answers)}; bright where the answer is right, middle where path or answer is alone"
    return Panel(title, "", "", kind="heat", grid=rows)


def size(job: Job) -> Measurement:
    """Mean accuracy over several sizes, each with models, mazes and steps of its own."""
    sides = SIZES[job.scale].sides
    found: dict[Objective, list[float]] = {name: [] for name in OBJECTIVES}
    for side in sides:
        mazes = task(job.scale, side, job.seed)
        for name in OBJECTIVES:
            found[name].append(exact(trained(job, name, mazes).paths(mazes), mazes))
    extras = {
        f"accuracy, {name}, {side} x {side} (%)": value
        for name in OBJECTIVES
        for side, value in zip(sides, found[name], strict=True)
    }
    places = [float(index) for index in range(len(sides))]
    bars: dict[str, tuple[list[float], list[float]]] = {name: (places, values) for name, values in found.items()}
    ticks = [f"{side} x {side}" for side in sides]
    panel = Panel("Unseen mazes solved", "cells", "%", bars, kind="bar", ticks=ticks)
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return Measurement(means["MLM-U"], means["next-token"], extras, (panel,))


def _plan(claim: str) -> Plan:
    """The paper's 8M model on 20 x 20 mazes: one step on 16 of them, prompt and longest path together."""
    shape = SIZES["paper"]
    names = MazeTokens(shape.side, shape.style)
    prompt = 3 * (shape.side**2 - 1) + 9
    with torch.device("meta"):
        student = Student("MLM-U", shape, names, prompt + names.longest_path)
        prompts, paths = (torch.zeros(shape.batch, n, dtype=torch.long) for n in (prompt, names.longest_path))
        flops = count_flops(lambda: student.network(prompts, paths))
    total = count_parameters(student)
    held = 4.0 * shape.batch * (prompt + names.longest_path) * shape.dim * 2 * shape.depth * 12
    return Plan(
        total,
        3.0 * flops,
        16.0 * total + held,
        f"everyformer run maze_mlmu.{claim} --scale paper --device cuda --precision bf16-mixed",
        "weights, gradients, Adam's state and activations in float32, and a backward pass of twice the forward; the "
        "authors train for up to 2,000 passes over 100,000 mazes. The A* mazes of the paper and its 175M model with "
        "traces are not part of the run.",
    )


def plan_samples() -> Plan:
    """Six trainings: three sets of mazes for two objectives."""
    return _plan("samples")


def plan_time() -> Plan:
    """Two trainings, shared with the other claims."""
    return _plan("time")


def plan_accuracy() -> Plan:
    """Two trainings, shared with the other claims."""
    return _plan("accuracy")


def plan_size() -> Plan:
    """Two trainings for each size."""
    return _plan("size")
