"""Transformers Can Navigate Mazes With Multi-Step Prediction (arXiv 2412.05117)."""

from everyformer.catalog import Claim, Paper

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
    licence="none verified (code)",
    tags=(
        "language",
        "theory",
    ),
    claims=(
        Claim(
            name="astar",
            statement="A small model solves large mazes more often than one twenty times its size trained on search traces.",
            metric="mazes solved",
            unit="%",
            better="higher",
            paper_value=85.5,
            paper_baseline=70.2,
            setting="30 x 30 A* mazes, against a next-token model of 175M parameters trained with traces",
            method="multi-step prediction",
            baseline="next-token with A* traces",
        ),
        Claim(
            name="samples",
            statement="It needs fewer examples.",
            metric="sample efficiency over next-token training",
            unit="x",
            better="higher",
            paper_value=4.0,
            paper_baseline=1.0,
            setting="20 x 20 mazes, equal parameters",
            method="multi-step prediction",
            baseline="next-token",
        ),
    ),
)
