"""On Mesa-Optimization in Autoregressively Trained Transformers: Emergence and Capability (arXiv 2405.16845)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="mesa",
    title="On Mesa-Optimization in Autoregressively Trained Transformers: Emergence and Capability",
    arxiv="2405.16845",
    published="2024-05-27",
    authors=6,
    organisation=None,
    summary=(
        "Follows the training dynamics of one layer of linear attention on sequences that a hidden rotation generates, "
        "and says exactly when it ends as a learner that takes a gradient step in its context, and when it does not. "
        "Each case is checked by simulation here."
    ),
    code=None,
    licence="no code known",
    tags=("theory",),
    claims=(
        Claim(
            name="limit",
            statement="Under a condition on moments, gradient flow ends at the closed-form in-context learner.",
            metric="distance of the limit from the closed form",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=0.0,
            setting="one-layer linear attention on unitary sequences; an exact statement",
            method="trained layer",
            baseline="closed form",
        ),
    ),
)
