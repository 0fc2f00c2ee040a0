"""Sliced Recursive Transformer (arXiv 2111.05297)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="sret",
    title="Sliced Recursive Transformer",
    arxiv="2111.05297",
    published="2021-11-09",
    authors=3,
    organisation=None,
    summary=(
        "Runs each block of a small vision transformer twice with the same weights, and slices the attention into groups "
        "in the loops so that depth comes without parameters and with little computation."
    ),
    code="https://github.com/szq0214/SReT",
    licence="MIT (code)",
    tags=(
        "vision",
        "attention",
    ),
    claims=(
        Claim(
            name="tiny",
            statement="Sharing weights over depth gives more accuracy for the same parameters.",
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=76.0,
            paper_baseline=72.2,
            setting="ImageNet-1k, SReT_T of 4.8M parameters; the baseline is DeiT-T",
            method="SReT_T",
            baseline="DeiT-T",
        ),
        Claim(
            name="slicing",
            statement="Slicing keeps nearly all of the accuracy for less computation.",
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=81.9,
            paper_baseline=82.0,
            setting="ImageNet-1k, SReT_S with 4.2G against 4.7G multiply-adds unsliced",
            method="sliced",
            baseline="unsliced",
        ),
    ),
)
