"""A Practical Survey on Faster and Lighter Transformers (arXiv 2103.14636)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="faster_lighter",
    title="A Practical Survey on Faster and Lighter Transformers",
    arxiv="2103.14636",
    published="2021-03-26",
    authors=3,
    organisation=None,
    summary=(
        "A guide to the many ways of making transformers cheaper, sorted by what limits you: computation, memory or "
        "capacity. Here it becomes a table of mixers and training methods measured on your machine."
    ),
    code=None,
    licence="no code known",
    tags=(
        "survey",
        "attention",
    ),
    claims=(
        Claim(
            name="crossover",
            statement="Methods of lower complexity pay off only beyond some length of sequence.",
            metric="length from which a method beats full attention",
            unit="tokens",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="a survey: no figure of its own",
        ),
    ),
)
