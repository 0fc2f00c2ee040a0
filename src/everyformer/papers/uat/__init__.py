"""Universal Approximation Theorem for a Single-Layer Transformer (arXiv 2507.10581)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="uat",
    title="Universal Approximation Theorem for a Single-Layer Transformer",
    arxiv="2507.10581",
    published="2025-07-11",
    authors=1,
    organisation=None,
    summary=(
        "One layer of attention with one feed-forward network can approximate any continuous map from sequences to "
        "sequences. Here that is a program: it builds the weights for a map and a precision that you name, and measures "
        "the error."
    ),
    code=None,
    licence="no code known",
    tags=("theory",),
    claims=(
        Claim(
            name="precision",
            statement="The constructed transformer stays within the precision asked for.",
            metric="largest error over the precision asked for",
            unit="",
            better="lower",
            paper_value=1.0,
            paper_baseline=None,
            setting="any continuous map on a compact domain; a theorem, so the ratio is at most 1",
            method="constructed transformer",
            baseline="the bound",
        ),
    ),
)
