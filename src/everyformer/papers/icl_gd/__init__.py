"""Transformers learn in-context by gradient descent (arXiv 2212.07677)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="icl_gd",
    title="Transformers learn in-context by gradient descent",
    arxiv="2212.07677",
    published="2022-12-15",
    authors=7,
    organisation=None,
    summary=(
        "Shows that a layer of linear self-attention can carry out a step of gradient descent on the examples in its "
        "context, gives the weights that do it, and finds that trained layers do the same. Everything here runs at the "
        "paper's own size on a CPU."
    ),
    code="https://github.com/google-research/self-organising-systems",
    licence="Apache-2.0 (code); no weights published",
    tags=("theory",),
    claims=(
        Claim(
            name="one_step",
            statement="A trained layer reaches the loss of one step of gradient descent.",
            metric="loss on new tasks",
            unit="half MSE",
            better="lower",
            paper_value=None,
            paper_baseline=0.20468888,
            setting="regression with 10 points in 10 dimensions; the step's loss as in the authors' notebooks",
            method="trained layer",
            baseline="one gradient step",
        ),
    ),
)
