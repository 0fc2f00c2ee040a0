"""Mazes and paths as tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from everyformer.papers.maze_mlmu.maze import Cell, Maze

PADDING, MASK, PATH, END = range(4)
SPECIAL = ("[PAD]", "[MASK]", "<PATH_START>", "<PATH_END>")
AROUND = ("<ADJLIST_START>", "<ADJLIST_END>", "<ORIGIN_START>", "<ORIGIN_END>", "<TARGET_START>", "<TARGET_END>", ";")


class MazeTokens:
    """The vocabulary of square mazes of one size.

    Args:
        size: cells on a side.
        style: ``words`` is the paper's prompt: the passages in random order and direction, three words each, then
            start and target between brackets of their own. ``passages`` says the same shorter: a token for each open
            passage, row by row, then start and target.

    Raises:
        ValueError: a size below 2 or another style.
    """

    def __init__(self, size: int, style: Literal["passages", "words"] = "passages") -> None:
        if size < 2:
            raise ValueError(f"size must be at least 2, got {size}")
        if style not in ("passages", "words"):
            raise ValueError(f"style must be passages or words, got {style!r}")
        self.size, self.style = size, style
        cells = [(row, column) for row in range(size) for column in range(size)]
        names = [*SPECIAL, *map(_name, cells)]
        if style == "words":
            names += AROUND
        else:
            names += [_name(a) + _name(b) for a in cells for b in ((a[0] + 1, a[1]), (a[0], a[1] + 1)) if max(b) < size]
        self.names = tuple(names)
        self.numbers = {name: number for number, name in enumerate(names)}

    @property
    def longest_path(self) -> int:
        """Tokens of the longest path: every cell, and the end."""
        return self.size**2 + 1

    def prompt(self, maze: Maze, seed: int = 0) -> list[str]:
        """The maze in words, up to where its path begins; ``seed`` settles the order of the style ``words``."""
        if tuple(maze.passages.shape[1:]) != (self.size, self.size):
            raise ValueError(f"maze must have {self.size} x {self.size} cells, got {tuple(maze.passages.shape[1:])}")
        edges = maze.edges()
        if self.style == "passages":
            return [*(_name(a) + _name(b) for a, b in edges), _name(maze.start), _name(maze.target), SPECIAL[PATH]]
        generator = random.Random(seed)
        generator.shuffle(edges)
        ends = [word for a, b in edges for word in (*map(_name, generator.sample((a, b), 2)), ";")]
        start, target = _name(maze.start), _name(maze.target)
        opened, closed, *rest = AROUND[:-1]
        return [opened, *ends, closed, rest[0], start, rest[1], rest[2], target, rest[3], SPECIAL[PATH]]

    def prompts(self, mazes: Sequence[Maze]) -> Int[Tensor, "mazes prompt"]:
        """Prompts of mazes that all have as many passages, as those from depth-first search do."""
        rows = [[self.numbers[word] for word in self.prompt(maze, seed)] for seed, maze in enumerate(mazes)]
        lengths = sorted({len(row) for row in rows})
        if len(lengths) != 1:
            raise ValueError(f"mazes must be at least one, all with as many passages, got prompts of {lengths} tokens")
        return torch.tensor(rows)

    def paths(self, paths: Sequence[Sequence[Cell]]) -> Int[Tensor, "paths longest"]:
        """Paths with the end after them, padded to the longest that there can be."""
        tokens = torch.full((len(paths), self.longest_path), PADDING)
        for row, path in zip(tokens, paths, strict=True):
            if len(path) >= self.longest_path:
                raise ValueError(f"paths must have at most {self.longest_path - 1} cells, got {len(path)}")
            row[: len(path) + 1] = torch.tensor([*(self.numbers[_name(cell)] for cell in path), END])
        return tokens

    def cells(self, tokens: Int[Tensor, "paths tokens"]) -> list[list[Cell]]:
        """The cells of each path up to its end; a path without an end, or with what is no cell, is empty."""
        found = []
        for row in tokens.tolist():
            path = row[: row.index(END)] if END in row else []
            places = [token - len(SPECIAL) for token in path]
            inside = all(0 <= place < self.size**2 for place in places)
            found.append([divmod(place, self.size) for place in places] if inside else [])
        return found


def _name(cell: Cell) -> str:
    return f"({cell[0]},{cell[1]})"
