"""PASTA: Pretrained Action-State Transformer Agents (arXiv 2307.10936)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="pasta",
    title="PASTA: Pretrained Action-State Transformer Agents",
    arxiv="2307.10936",
    published="2023-07-20",
    authors=5,
    organisation=None,
    summary=(
        "Pretrains one small transformer on trajectories of several robots by treating every number of state and action "
        "as a token. The model then helps with imitation, failing sensors and changed dynamics after light tuning."
    ),
    code=None,
    licence="authors' repository not available",
    tags=(
        "control",
        "spacetime",
    ),
    claims=(
        Claim(
            name="tokens",
            statement="Tokens for single components serve downstream tasks better than tokens for whole states.",
            metric="normalised return",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="Brax Ant, HalfCheetah, Hopper and Walker2d; figures not verified",
            method="component tokens",
            baseline="one token per state or action",
        ),
    ),
)
