import pytest
import torch

from everyformer.papers.maze_mlmu import Maze, MazeTokens, dfs_mazes, shortest_path
from everyformer.papers.maze_mlmu.tokens import END, MASK, PADDING


def square():
    """Two by two cells, open around all but the right side; from the upper right to the lower right one."""
    passages = torch.tensor([[[True, False], [False, False]], [[True, False], [True, False]]])
    return Maze(passages, (0, 1), (1, 1))


def test_the_papers_words_and_the_short_ones():
    words = MazeTokens(2, "words").prompt(square())
    edges = words[1 : words.index("<ADJLIST_END>")]
    assert {frozenset(edges[i : i + 2]) for i in (0, 3, 6)} == {
        frozenset(pair) for pair in (("(0,0)", "(0,1)"), ("(0,0)", "(1,0)"), ("(1,0)", "(1,1)"))
    }
    assert edges[2::3] == [";"] * 3 and words[0] == "<ADJLIST_START>"
    assert " ".join(words[words.index("<ADJLIST_END>") + 1 :]) == (
        "<ORIGIN_START> (0,1) <ORIGIN_END> <TARGET_START> (1,1) <TARGET_END> <PATH_START>"
    )
    short = MazeTokens(2).prompt(square())
    assert short == ["(0,0)(1,0)", "(0,0)(0,1)", "(1,0)(1,1)", "(0,1)", "(1,1)", "<PATH_START>"]
    assert len({*MazeTokens(2, "words").prompt(square(), 1)[1:9:3]}) and MazeTokens(4, "words").prompt(
        dfs_mazes(1, 4, seed=0)[0], 1
    ) != MazeTokens(4, "words").prompt(dfs_mazes(1, 4, seed=0)[0], 2)


@pytest.mark.parametrize("style", ["passages", "words"])
def test_paths_come_back_from_their_tokens(style):
    mazes = dfs_mazes(20, 4, seed=0)
    tokens = MazeTokens(4, style)
    paths = [shortest_path(maze) for maze in mazes]
    rows = tokens.paths(paths)
    assert rows.shape == (20, 17) and tokens.cells(rows) == paths
    assert tokens.prompts(mazes).shape == (20, 18 if style == "passages" else 3 * 15 + 9)
    assert len(set(tokens.names)) == len(tokens.names)
    for row, path in zip(rows.tolist(), paths, strict=True):
        assert row[len(path)] == END and set(row[len(path) + 1 :]) <= {PADDING}


def test_what_is_no_path_gives_none():
    tokens = MazeTokens(2)
    cell = tokens.numbers["(0,1)"]
    rows = torch.tensor([[cell, END, cell], [cell, cell, cell], [MASK, END, cell], [END, cell, cell]])
    assert tokens.cells(rows) == [[(0, 1)], [], [], []]


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="size must be at least 2, got 1"):
        MazeTokens(1)
    with pytest.raises(ValueError, match="style must be passages or words, got 'pixels'"):
        MazeTokens(2, "pixels")
    with pytest.raises(ValueError, match=r"maze must have 3 x 3 cells, got \(2, 2\)"):
        MazeTokens(3).prompt(square())
    with pytest.raises(ValueError, match="paths must have at most 4 cells, got 5"):
        MazeTokens(2).paths([[(0, 0)] * 5])
    fewer = Maze(torch.zeros(2, 2, 2, dtype=torch.bool), (0, 0), (0, 1))
    with pytest.raises(ValueError, match=r"all with as many passages, got prompts of \[3, 6\] tokens"):
        MazeTokens(2).prompts([square(), fewer])
