"""iTransformer: variates as tokens (arXiv 2310.06625)."""

from everyformer.catalog import Paper, lazy

PAPER = Paper(
    slug="itransformer",
    title="iTransformer: Inverted Transformers Are Effective for Time Series Forecasting",
    arxiv="2310.06625",
    published="2023-10-10",
    authors=7,
    organisation=None,
    summary=(
        "A forecaster that turns the transformer on its side: the whole past of one variate is one token, so attention "
        "relates variates and the feed-forward layers work along time. The same weights take any number of variates, "
        "in any order, and most attentions can be inverted the same way."
    ),
    code="https://github.com/thuml/iTransformer",
    licence="MIT (code); no weights published",
    tags=("series", "attention"),
    claims=(),
)

MODELS = {"itransformer": "ITransformer"}

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DLinear": "baselines",
        "ITransformer": "model",
        "Inverted": "model",
        "VanillaTransformer": "baselines",
        "flow_attention": "attention",
        "invert": "model",
        "prob_attention": "attention",
    },
)
