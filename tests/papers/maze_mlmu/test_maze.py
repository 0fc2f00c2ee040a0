import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.maze_mlmu import Maze, astar, dfs_mazes, draw, is_path, shortest_path, trace_words, wall_mazes
from everyformer.papers.maze_mlmu.maze import raster


def corridor():
    """Three cells in a row above three that are walled in."""
    passages = torch.zeros(2, 2, 3, dtype=torch.bool)
    passages[1, 0, :2] = True
    return passages


@given(st.integers(2, 6), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_maze_of_depth_first_search_is_a_tree_with_its_shortest_path(size, seed):
    (maze,) = dfs_mazes(1, size, seed=seed)
    assert len(maze.edges()) == size**2 - 1 and len(maze.neighbours()) == size**2
    path = shortest_path(maze)
    assert is_path(maze, path) and len(set(path)) == len(path) > 1
    assert path == astar(maze).path
    assert not is_path(maze, path[:-1]) and not is_path(maze, path[1:]) and not is_path(maze, [])
    assert is_path(maze, [path[0], path[1], *path])  # a detour


def test_mazes_follow_the_seed_and_leave_other_generators_alone():
    random.seed(5)
    np.random.seed(5)
    wanted = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    one, same, other = (dfs_mazes(50, 4, seed=seed) for seed in (1, 1, 2))
    assert (random.random(), np.random.rand()) == wanted
    assert [maze.key for maze in one] == [maze.key for maze in same] != [maze.key for maze in other]
    assert len({maze.key for maze in one}) == 50


def test_what_is_excluded_does_not_come_up():
    test = dfs_mazes(400, 3, seed=1)
    train = dfs_mazes(800, 3, seed=2, exclude=test)
    assert not {maze.key for maze in test} & {maze.key for maze in train}
    assert {maze.key for maze in test} & {maze.key for maze in dfs_mazes(800, 3, seed=2)}


def test_a_wrong_maze_is_named():
    with pytest.raises(ValueError, match=r"start must be inside the grid of 2 x 3, got \(2, 0\)"):
        Maze(corridor(), (2, 0), (0, 0))
    with pytest.raises(ValueError, match=r"target must be inside the grid of 2 x 3, got \(0, -1\)"):
        Maze(corridor(), (0, 0), (0, -1))
    with pytest.raises(ValueError, match=r"passages must be truth values .* got torch.float32"):
        Maze(corridor().float(), (0, 0), (0, 1))
    with pytest.raises(ValueError, match="passages must not lead out of the grid"):
        Maze(torch.ones(2, 2, 2, dtype=torch.bool), (0, 0), (0, 1))
    cut_off = Maze(corridor(), (0, 0), (1, 1))
    for solve in (shortest_path, astar):
        with pytest.raises(ValueError, match=r"maze must be connected, got no path from \(0, 0\) to \(1, 1\)"):
            solve(cut_off)
    with pytest.raises(ValueError, match="size at least 2, got 1 and 1"):
        dfs_mazes(1, 1, seed=0)
    with pytest.raises(ValueError, match="got 100 and found"):
        dfs_mazes(100, 2, seed=0)
    with pytest.raises(ValueError, match="size at least 3, got 1 and 2"):
        wall_mazes(1, 2, seed=0)


def test_the_trace_of_a_star_is_what_it_did():
    maze = Maze(corridor(), (0, 1), (0, 2))
    prompt, trace, plan = trace_words(maze, astar(maze))
    assert " ".join(prompt) == "start 1 0 goal 2 0 wall 0 1 wall 1 1 wall 2 1"
    assert " ".join(trace) == ("create 1 0 c0 c1 close 1 0 c0 c1 create 0 0 c1 c2 create 2 0 c1 c0 close 2 0 c1 c0")
    assert " ".join(plan) == "plan 1 0 plan 2 0"


@given(st.integers(3, 7), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_searches_of_mazes_with_walls_are_shortest_and_in_order(size, seed):
    for maze, search in wall_mazes(3, size, seed=seed):
        assert size < len(search.path) == len(shortest_path(maze)) and is_path(maze, search.path)
        created, closed = set(), set()
        for event in search.events:
            if event.kind == "create":
                created.add(event.cell)
            else:
                assert event.cell in created and event.cell not in closed
                closed.add(event.cell)
        assert event.cell == maze.target and event.cost == len(search.path) - 1 and event.estimate == 0
        sums = [event.cost + event.estimate for event in search.events if event.kind == "close"]
        assert sums == sorted(sums)  # the estimate never overestimates, nor falls short by more than a step saves
    assert [search.path for _, search in wall_mazes(3, size, seed=seed)][-1] == search.path


def test_pixels_show_walls_paths_and_what_they_share():
    maze = Maze(corridor(), (0, 0), (0, 2))
    grid = raster(maze, [(0, 0), (0, 1), (0, 2)], [(0, 0), (0, 1), (1, 1)])
    assert grid[1] == [0, 4, 4, 4, 3, 3, 0]
    assert grid[2] == [0, 0, 0, 2, 0, 0, 0] and grid[3] == [0, 0, 0, 2, 0, 0, 0]


def test_a_picture_can_be_saved(tmp_path):
    (maze,) = dfs_mazes(1, 5, seed=0)
    path = shortest_path(maze)
    draw(maze, path, path[:3]).savefig(tmp_path / "maze.png")
    assert (tmp_path / "maze.png").read_bytes()[:4] == b"\x89PNG"
    labels = [text.get_text() for text in draw(maze, path).axes[0].get_legend().get_texts()]
    assert labels == ["path", "start", "target"]
