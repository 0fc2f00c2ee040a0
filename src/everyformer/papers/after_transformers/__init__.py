"""What comes after transformers? -- A selective survey connecting ideas in deep learning (arXiv 2408.00386)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="after_transformers",
    title="What comes after transformers? -- A selective survey connecting ideas in deep learning",
    arxiv="2408.00386",
    published="2024-08-01",
    authors=1,
    organisation=None,
    summary=(
        "A survey of what stands beside attention and what may follow it: state-space models, modern recurrence, mixture "
        "of experts, other objectives, and the ideas that link them. Here its methods become token mixers with one "
        "signature that are measured against each other."
    ),
    code=None,
    licence="no code known",
    tags=("survey",),
    claims=(
        Claim(
            name="alternatives",
            statement="Mixers without attention match it on some tasks at a lower cost per token.",
            metric="accuracy at equal parameters and budget",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="a survey: figures of the works it cites, none verified",
        ),
    ),
)
