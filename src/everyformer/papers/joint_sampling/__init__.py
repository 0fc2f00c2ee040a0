"""Enabling Approximate Joint Sampling in Diffusion LMs (arXiv 2509.22738)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="joint_sampling",
    title="Enabling Approximate Joint Sampling in Diffusion LMs",
    arxiv="2509.22738",
    published="2025-09-25",
    authors=2,
    organisation=None,
    summary=(
        "Masked diffusion language models fill several words at once as if they were independent. A single extra layer, "
        "applied between full passes, lets each new word see those just filled, close to sampling them jointly."
    ),
    code=None,
    licence="no code known",
    tags=("language",),
    claims=(
        Claim(
            name="mauve",
            statement="Four tokens per pass read much more like text sampled one at a time.",
            metric="MAUVE against true joint samples",
            unit="",
            better="higher",
            paper_value=0.87,
            paper_baseline=0.31,
            setting="Dream-7B-Base, four tokens per full pass",
            method="with the sampler layer",
            baseline="marginal sampling",
        ),
    ),
)
