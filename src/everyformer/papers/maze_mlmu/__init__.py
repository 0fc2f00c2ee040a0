"""Transformers Can Navigate Mazes With Multi-Step Prediction (arXiv 2412.05117)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

_HERE = (
    "; here mazes of {sides} cells from depth-first search, a token for each open passage, 0.2M parameters for both "
    "objectives, as many steps and mazes; a maze counts if its whole shortest path is right"
)

PAPER = Paper(
    slug="maze_mlmu",
    title="Transformers Can Navigate Mazes With Multi-Step Prediction",
    arxiv="2412.05117",
    published="2024-12-06",
    authors=5,
    organisation=None,
    summary=(
        "Trains a transformer to fill in any masked part of a path through a maze, at any rate of masking, instead of "
        "the next step only. Learning to look ahead and back makes planning far easier to learn."
    ),
    code="https://github.com/facebookresearch/maze_navigation_MLMU",
    licence="Apache-2.0 (code)",
    tags=(
        "language",
        "theory",
    ),
    claims=(
        Claim(
            name="accuracy",
            statement="A small model solves large mazes more often than one twenty times its size trained on search traces.",
            metric="mazes solved",
            unit="%",
            better="higher",
            paper_value=85.5,
            paper_baseline=70.2,
            setting="30 x 30 A* mazes, against a next-token model of 175M parameters trained with traces"
            + _HERE.format(sides="3 x 3")
            + " and the next-token model has no traces",
            method="multi-step prediction",
            baseline="next-token",
            threshold=Threshold("difference", 5.0),
            run="accuracy",
            plan="plan_accuracy",
        ),
        Claim(
            name="time",
            statement="It gets there in less time of training.",
            metric="time of training until 90% of unseen mazes are solved",
            unit="s",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="2x fewer GPU hours on 5 x 5 mazes, which both objectives solve" + _HERE.format(sides="3 x 3"),
            method="multi-step prediction",
            baseline="next-token",
            threshold=Threshold("ratio", 1.5),
            run="time",
            plan="plan_time",
        ),
        Claim(
            name="samples",
            statement="It needs fewer examples.",
            metric="sample efficiency over next-token training",
            unit="x",
            better="higher",
            paper_value=4.0,
            paper_baseline=1.0,
            setting="20 x 20 mazes, equal parameters" + _HERE.format(sides="3 x 3"),
            method="multi-step prediction",
            baseline="next-token",
            threshold=Threshold("ratio", 2.0),
            run="samples",
            plan="plan_samples",
        ),
        Claim(
            name="size",
            statement="Larger mazes cost it less accuracy.",
            metric="mazes solved, mean over sizes",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="the paper's model of 8M solves all mazes of up to 20 x 20, where next-token training falls behind"
            + _HERE.format(sides="3 x 3 and 4 x 4"),
            method="multi-step prediction",
            baseline="next-token",
            threshold=Threshold("difference", 5.0),
            run="size",
            plan="plan_size",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        **dict.fromkeys(("Maze", "dfs_mazes", "draw", "is_path", "shortest_path"), "maze"),
        **dict.fromkeys(("astar", "trace_words", "wall_mazes"), "search"),
        **dict.fromkeys(("fill", "joined", "mlm_u_loss", "next_token_loss", "two_stacks", "write"), "method"),
        "MazeTokens": "tokens",
        "PAST": "model",
    },
)
