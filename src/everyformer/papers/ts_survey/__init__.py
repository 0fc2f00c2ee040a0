"""Transformers in Time Series: A Survey (arXiv 2202.07125)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="ts_survey",
    title="Transformers in Time Series: A Survey",
    arxiv="2202.07125",
    published="2022-02-14",
    authors=7,
    organisation=None,
    summary=(
        "A survey of transformers for time series with three studies of its own: how they cope with long inputs, how "
        "deep they should be, and what separating trend from season gives. Here the studies run again for seven models "
        "in one harness."
    ),
    code="https://github.com/qingsongedu/time-series-transformers-review",
    licence="none verified (list of papers)",
    tags=(
        "survey",
        "series",
    ),
    claims=(
        Claim(
            name="decomposition",
            statement="Separating trend and season improves most transformers for forecasting.",
            metric="test MSE",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="ETTm2; figures not verified",
            method="with decomposition",
            baseline="without",
        ),
    ),
)
