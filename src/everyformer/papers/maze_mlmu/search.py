"""A* search with its trace as words, and the mazes it is run on: the data of Searchformer (arXiv 2402.14083, section 3)."""

from __future__ import annotations

import dataclasses
import heapq
import random
from typing import Literal

import torch

from everyformer.papers.maze_mlmu.maze import DOWN, RIGHT, Cell, Maze


@dataclasses.dataclass(frozen=True)
class Event:
    """A cell that enters the frontier (``create``) or leaves it for good (``close``), with cost so far and estimate."""

    kind: Literal["create", "close"]
    cell: Cell
    cost: int
    estimate: int


@dataclasses.dataclass(frozen=True)
class Search:
    """What A* did, in order, and the shortest path that it found."""

    events: list[Event]
    path: list[Cell]


def astar(maze: Maze) -> Search:
    """A* with the Manhattan distance; among equals, the cell nearer to the target and then the older one goes first.

    Raises:
        ValueError: start and target are not connected.
    """

    def estimate(cell: Cell) -> int:
        return abs(cell[0] - maze.target[0]) + abs(cell[1] - maze.target[1])

    neighbours = maze.neighbours()
    costs, before, closed = {maze.start: 0}, {maze.start: maze.start}, set[Cell]()
    events = [Event("create", maze.start, 0, estimate(maze.start))]
    frontier = [(estimate(maze.start), estimate(maze.start), 0, maze.start)]
    while frontier:
        _, left, _, cell = heapq.heappop(frontier)
        if cell in closed:
            continue
        closed.add(cell)
        events.append(Event("close", cell, costs[cell], left))
        if cell == maze.target:
            path = [cell]
            while path[-1] != maze.start:
                path.append(before[path[-1]])
            return Search(events, path[::-1])
        for neighbour in neighbours.get(cell, ()):
            cost = costs[cell] + 1
            if cost < costs.get(neighbour, cost + 1):
                costs[neighbour], before[neighbour] = cost, cell
                events.append(Event("create", neighbour, cost, estimate(neighbour)))
                heapq.heappush(frontier, (cost + estimate(neighbour), estimate(neighbour), len(events), neighbour))
    raise ValueError(f"maze must be connected, got no path from {maze.start} to {maze.target}")


def wall_mazes(count: int, size: int, *, seed: int) -> list[tuple[Maze, Search]]:
    """Mazes in which 30 to 50 per cent of the cells are walls, no two the same, each with A*'s search.

    Start and target are drawn until they are connected by at least ``size`` steps.

    Raises:
        ValueError: a size below 3.
    """
    if size < 3 or count < 1:
        raise ValueError(f"count must be at least 1 and size at least 3, got {count} and {size}")
    generator = random.Random(seed)
    found: dict[tuple[bytes, Cell, Cell], tuple[Maze, Search]] = {}
    while len(found) < count:
        walls = generator.sample(range(size * size), round(generator.uniform(0.3, 0.5) * size * size))
        floor = torch.ones(size * size, dtype=torch.bool)
        floor[walls] = False
        grid = floor.view(size, size)
        passages = torch.zeros(2, size, size, dtype=torch.bool)
        passages[DOWN, :-1] = grid[:-1] & grid[1:]
        passages[RIGHT, :, :-1] = grid[:, :-1] & grid[:, 1:]
        free = [divmod(place, size) for place in floor.nonzero()[:, 0].tolist()]
        maze = Maze(passages, *generator.sample(free, 2))
        try:
            search = astar(maze)
        except ValueError:
            continue
        if len(search.path) > size:
            found[maze.key] = maze, search
    return list(found.values())


def trace_words(maze: Maze, search: Search) -> tuple[list[str], list[str], list[str]]:
    """Prompt, trace and plan as Searchformer writes them: columns before rows, costs as ``c3``.

    Cells without any passage count as walls.
    """

    def place(cell: Cell) -> list[str]:
        return [str(cell[1]), str(cell[0])]

    open_cells = {*maze.neighbours(), maze.start, maze.target}
    rows, columns = maze.passages.shape[1:]
    prompt = ["start", *place(maze.start), "goal", *place(maze.target)]
    for cell in ((row, column) for row in range(rows) for column in range(columns)):
        if cell not in open_cells:
            prompt += ["wall", *place(cell)]
    trace = [
        word
        for event in search.events
        for word in (event.kind, *place(event.cell), f"c{event.cost}", f"c{event.estimate}")
    ]
    return prompt, trace, [word for cell in search.path for word in ("plan", *place(cell))]
