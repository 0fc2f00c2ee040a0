"""What the claims share: mazes, and models of both objectives trained on them once, with how they did on the way."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.catalog import Job, Scale
from everyformer.lab import train
from everyformer.lab.pretrained import load_or_train
from everyformer.papers.maze_mlmu import maze, method, tokens
from everyformer.papers.maze_mlmu import model as model_module
from everyformer.papers.maze_mlmu.maze import Cell, Maze
from everyformer.papers.maze_mlmu.model import PAST
from everyformer.papers.maze_mlmu.tokens import END, MASK, PADDING, MazeTokens
from everyformer.parts import language
from everyformer.parts.language import LanguageModel

Objective = Literal["MLM-U", "next-token"]
OBJECTIVES: tuple[Objective, ...] = ("MLM-U", "next-token")


@dataclasses.dataclass(frozen=True)
class Size:
    """Mazes, models and their training, the same for both objectives.

    Attributes:
        side: cells on a side of the mazes of most claims; ``sides``: of those that the size claim compares.
        mazes: the most to train on; ``tested``: to test on at the end, ``watched``: on the way.
        depth: layers of encoder and of decoder; the next-token model has as many as both.
        checks: how often accuracy is taken on the way.
    """

    side: int
    sides: tuple[int, ...]
    mazes: int
    tested: int
    watched: int
    dim: int
    depth: int
    heads: int
    batch: int
    steps: int
    rate: float
    checks: int
    style: Literal["passages", "words"] = "passages"


SIZES: dict[Scale, Size] = {
    "smoke": Size(3, (3, 4), 64, 20, 10, 16, 1, 2, 8, 12, 1e-3, 3),
    "cpu": Size(3, (3, 4), 2000, 500, 200, 64, 2, 4, 32, 2000, 2e-3, 10),
    "paper": Size(20, (5, 10, 20, 30), 100_000, 2000, 500, 128, 20, 4, 16, 1_000_000, 1e-3, 50, "words"),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Mazes to train on (in an order whose beginnings are smaller sets) and to test on, with their tokens."""

    names: MazeTokens
    test: list[Maze]
    answers: list[list[Cell]]
    train_prompts: Int[Tensor, "mazes prompt"]
    train_paths: Int[Tensor, "mazes tokens"]
    test_prompts: Int[Tensor, "tested prompt"]


def task(scale: Scale, side: int, seed: int) -> Task:
    """The mazes of a seed; none that is tested is trained on."""
    size = SIZES[scale]
    test = maze.dfs_mazes(size.tested, side, seed=2 * seed + 1)
    drawn = maze.dfs_mazes(size.mazes, side, seed=2 * seed, exclude=test)
    names = MazeTokens(side, size.style)
    return Task(
        names,
        test,
        [maze.shortest_path(other) for other in test],
        names.prompts(drawn),
        names.paths([maze.shortest_path(other) for other in drawn]),
        names.prompts(test),
    )


class Student(nn.Module):
    """A network under an objective, and its accuracy (%) on the way; the latter are kept with its weights.

    Its output is the loss of prompts and paths.
    """

    done: Tensor
    curve: Tensor

    def __init__(self, objective: Objective, size: Size, names: MazeTokens, longest: int) -> None:
        super().__init__()
        self.objective = objective
        vocabulary = len(names.names)
        self.network: nn.Module
        if objective == "MLM-U":
            self.network = PAST(
                vocabulary=vocabulary, dim=size.dim, depth=size.depth, heads=size.heads, hidden=(MASK, PADDING),
                longest=longest,
            )  # fmt: skip
        else:
            self.network = LanguageModel(
                vocabulary=vocabulary, dim=size.dim, depth=2 * size.depth, heads=size.heads, longest=longest
            )
        self.register_buffer("done", torch.tensor(0))
        self.register_buffer("curve", torch.zeros(size.checks))

    def forward(self, prompt: Int[Tensor, "batch prompt"], path: Int[Tensor, "batch tokens"]) -> Float[Tensor, ""]:
        if self.objective == "MLM-U":
            return method.mlm_u_loss(self.network, prompt, path, mask_token=MASK, padding=PADDING)
        return method.next_token_loss(self.network, prompt, path, padding=PADDING)

    @torch.no_grad()
    def paths(
        self, task: Task, count: int | None = None, order: Literal["left", "confidence"] = "left"
    ) -> list[list[Cell]]:
        """What it answers to the first ``count`` mazes of the test."""
        found = []
        device = next(self.parameters()).device
        for part in task.test_prompts[:count].to(device).split(250):
            length = task.names.longest_path
            if isinstance(self.network, LanguageModel):
                found += task.names.cells(method.write(self.network, part, length))
            else:
                answer = method.fill(self.network, part, length, mask_token=MASK, end=END, order=order)
                found += task.names.cells(answer)
        return found


def exact(found: list[list[Cell]], task: Task) -> float:
    """Share (%) of the paths that are the shortest, to the cell."""
    return 100 * sum(path == answer for path, answer in zip(found, task.answers, strict=False)) / len(found)


def valid(found: list[list[Cell]], task: Task) -> float:
    """Share (%) of the paths that lead from start to target, detours allowed."""
    return 100 * sum(maze.is_path(other, path) for path, other in zip(found, task.test, strict=False)) / len(found)


def trained(job: Job, objective: Objective, task: Task, *, mazes: int | None = None) -> Student:
    """The student of a seed after its training on the first ``mazes`` mazes, from the cache where it is there."""
    size = SIZES[job.scale]
    prompts, paths = task.train_prompts[:mazes], task.train_paths[:mazes]
    torch.manual_seed(job.seed)
    student = Student(objective, size, task.names, prompts.shape[1] + paths.shape[1])
    every = max(1, size.steps // size.checks)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(prompts), (size.batch,), generator=generator)
        return prompts[chosen], paths[chosen]

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        done = int(student.done)
        if done and done % every == 0:
            student.curve[done // every - 1] = exact(student.paths(task, size.watched), task)
        student.done += 1
        return module(*batch)  # type: ignore[no-any-return]

    def fit(folder: Path) -> None:
        train.fit_drawn(
            student, step, draw, steps=size.steps, rate=size.rate, folder=folder, seed=job.seed, device=job.device,
            precision=job.precision, strategy=job.strategy, label=f"{objective}, {len(prompts)} mazes",
        )  # fmt: skip
        student.curve[-1] = exact(student.paths(task, size.watched), task)

    load_or_train(
        student, fit,
        recipe={**dataclasses.asdict(size), "objective": objective, "seed": job.seed, "precision": job.precision},
        samples=[prompts, paths, task.test_prompts],
        code=[language, maze, method, model_module, tokens, train, sys.modules[__name__]],
    )  # fmt: skip
    return student.to(job.device).eval()
