"""Mazes on a grid, their shortest paths, and pictures of them."""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = tuple[int, int]  # row and column
DOWN, RIGHT = 0, 1


@dataclasses.dataclass(frozen=True, eq=False)
class Maze:
    """Cells of a grid with open passages between some neighbours, and where a path begins and ends.

    Attributes:
        passages: whether a cell is open towards the one below and towards the one on its right.

    Raises:
        ValueError: passages of another shape or that leave the grid, a start or target outside it.
    """

    passages: Bool[Tensor, "2 rows columns"]
    start: Cell
    target: Cell

    def __post_init__(self) -> None:
        shape = tuple(self.passages.shape)
        if len(shape) != 3 or shape[0] != 2 or self.passages.dtype != torch.bool:
            raise ValueError(f"passages must be truth values (2, rows, columns), got {self.passages.dtype} {shape}")
        if self.passages[DOWN, -1].any() or self.passages[RIGHT, :, -1].any():
            raise ValueError(
                "passages must not lead out of the grid, got one below its last row or right of its last column"
            )
        for name, (row, column) in (("start", self.start), ("target", self.target)):
            if not (0 <= row < shape[1] and 0 <= column < shape[2]):
                raise ValueError(f"{name} must be inside the grid of {shape[1]} x {shape[2]}, got {(row, column)}")

    @property
    def key(self) -> tuple[bytes, Cell, Cell]:
        """What is equal for equal mazes of one size."""
        return self.passages.numpy().tobytes(), self.start, self.target

    def edges(self) -> list[tuple[Cell, Cell]]:
        """Open passages, row by row; of each the upper or left cell first."""
        found = []
        for row, column, way in self.passages.permute(1, 2, 0).nonzero().tolist():
            found.append(((row, column), (row + (way == DOWN), column + (way == RIGHT))))
        return found

    def neighbours(self) -> dict[Cell, list[Cell]]:
        """The cells that each cell is open to; walled-in cells are left out."""
        found: dict[Cell, list[Cell]] = {}
        for one, other in self.edges():
            found.setdefault(one, []).append(other)
            found.setdefault(other, []).append(one)
        return found


def shortest_path(maze: Maze) -> list[Cell]:
    """A shortest path from start to target, both included; a maze from depth-first search has no other.

    Raises:
        ValueError: start and target are not connected.
    """
    neighbours, before, queue = maze.neighbours(), {maze.start: maze.start}, deque([maze.start])
    while queue and maze.target not in before:
        cell = queue.popleft()
        for neighbour in neighbours.get(cell, ()):
            if neighbour not in before:
                before[neighbour] = cell
                queue.append(neighbour)
    if maze.target not in before:
        raise ValueError(f"maze must be connected, got no path from {maze.start} to {maze.target}")
    path = [maze.target]
    while path[-1] != maze.start:
        path.append(before[path[-1]])
    return path[::-1]


def is_path(maze: Maze, cells: Sequence[Cell]) -> bool:
    """Whether cells lead from start to target through open passages, by whatever detour."""
    if not cells or cells[0] != maze.start or cells[-1] != maze.target:
        return False
    neighbours = maze.neighbours()
    return all(other in neighbours.get(one, ()) for one, other in pairwise(cells))


def dfs_mazes(count: int, size: int, *, seed: int, exclude: Iterable[Maze] = ()) -> list[Maze]:
    """Mazes of ``size`` x ``size`` carved by depth-first search (``maze-dataset``), no two the same.

    Two may have the same passages between other starts and targets.

    Args:
        exclude: mazes that must not come up, such as those to test on.

    Raises:
        ValueError: a size below 2, or more mazes than are found in ten tries each.
    """
    if size < 2 or count < 1:
        raise ValueError(f"count must be at least 1 and size at least 2, got {count} and {size}")
    from maze_dataset.generation import LatticeMazeGenerators  # takes seconds to import

    excluded, found = {maze.key for maze in exclude}, dict[tuple[bytes, Cell, Cell], Maze]()
    generator = random.Random(seed)
    with _global_seeds(seed):
        for _ in range(100 + 10 * count):
            carved = LatticeMazeGenerators.gen_dfs((size, size)).connection_list
            start, target = generator.sample(range(size * size), 2)
            maze = Maze(torch.from_numpy(carved.copy()), divmod(start, size), divmod(target, size))
            if maze.key not in excluded:
                found[maze.key] = maze
                if len(found) == count:
                    return list(found.values())
    raise ValueError(f"count must be at most what {size} x {size} mazes give, got {count} and found {len(found)}")


@contextmanager
def _global_seeds(seed: int) -> Iterator[None]:
    """The generators that ``maze-dataset`` draws from are seeded inside and as they were outside."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def raster(maze: Maze, path: Sequence[Cell] = (), predicted: Sequence[Cell] = ()) -> list[list[float]]:
    """The maze as pixels: 0 walls, 1 floor, 2 the predicted path only, 3 the path only, 4 both.

    Cells and what is between them are a pixel each; steps through walls are painted over them.
    """
    rows, columns = maze.passages.shape[1:]
    grid = [[0.0] * (2 * columns + 1) for _ in range(2 * rows + 1)]

    def paint(cells: Sequence[Cell], value: float) -> None:
        places = [(2 * row + 1, 2 * column + 1) for row, column in cells]
        between = [((a + c) // 2, (b + d) // 2) for (a, b), (c, d) in pairwise(places)]
        for row, column in {*places, *between}:
            grid[row][column] += value if grid[row][column] else 1 + value

    for one, other in maze.edges():
        for row, column in (one, other):
            grid[2 * row + 1][2 * column + 1] = 1.0
        grid[one[0] + other[0] + 1][one[1] + other[1] + 1] = 1.0
    paint(predicted, 1.0)
    paint(path, 2.0)
    return grid


def draw(maze: Maze, path: Sequence[Cell] = (), predicted: Sequence[Cell] = ()) -> Figure:
    """A picture of a maze with its path and a predicted one; to be saved by ``draw(...).savefig(file)``."""
    from matplotlib.figure import Figure

    rows, columns = maze.passages.shape[1:]
    figure = Figure(figsize=(1 + columns / 2, 1 + rows / 2), layout="constrained")
    axis = figure.add_subplot()
    axis.set_aspect("equal")
    axis.axis("off")
    axis.plot([0, columns, columns, 0, 0], [0, 0, rows, rows, 0], color="black", linewidth=2)
    for row in range(rows):
        for column in range(columns):
            if row + 1 < rows and not maze.passages[DOWN, row, column]:
                axis.plot([column, column + 1], [row + 1, row + 1], color="black", linewidth=2)
            if column + 1 < columns and not maze.passages[RIGHT, row, column]:
                axis.plot([column + 1, column + 1], [row, row + 1], color="black", linewidth=2)
    for cells, label, style in ((path, "path", "-"), (predicted, "predicted", "--")):
        if cells:
            axis.plot([c + 0.5 for _, c in cells], [r + 0.5 for r, _ in cells], style, linewidth=3, label=label)
    for (row, column), marker, label in ((maze.start, "o", "start"), (maze.target, "*", "target")):
        axis.plot(column + 0.5, row + 0.5, marker, markersize=12, color="black", label=label)
    axis.invert_yaxis()
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, frameon=False)
    return figure
