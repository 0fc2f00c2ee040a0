"""iTransformer: variates as tokens (arXiv 2310.06625)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

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
    claims=(
        Claim(
            name="etth1",
            statement=(
                "iTransformer forecasts the next 96 hours of ETTh1 from the last 96 with the error the paper reports."
            ),
            metric="test MSE",
            unit="standard units²",
            better="lower",
            paper_value=0.386,
            paper_baseline=None,
            setting="ETTh1, look-back 96, horizon 96, mean over all variates (paper's full results table)",
            method="iTransformer",
            baseline="Transformer, not inverted",
            threshold=Threshold("bound", 0.390),
            run="etth1",
            plan="plan_etth1",
        ),
        Claim(
            name="inversion",
            statement=(
                "Inverting a transformer lowers its forecasting error, whichever attention it uses; both sides are "
                "normalised here, since the paper's plain transformers were not and its inverted ones were."
            ),
            metric="test MSE, mean of full, flow and prob attention",
            unit="standard units²",
            better="lower",
            paper_value=0.178,
            paper_baseline=0.277,
            setting="ECL, full attention, mean of four horizons, plain side not normalised (paper's promotion table)",
            method="inverted",
            baseline="plain",
            threshold=Threshold("relative", 0.10),
            run="inversion",
            plan="plan_ecl",
        ),
        Claim(
            name="unseen_variates",
            statement=(
                "Trained on a fifth of the variates, iTransformer forecasts the others with less extra error than a "
                "transformer that treats each variate by itself."
            ),
            metric="extra test MSE on unseen variates",
            unit="standard units²",
            better="lower",
            paper_value=0.048,
            paper_baseline=0.074,
            setting="ECL, trained on 20% of 321 variates (paper's figure on unseen variates)",
            method="iTransformer",
            baseline="channel-independent Transformer",
            threshold=Threshold("relative", 0.10),
            run="unseen_variates",
            plan="plan_ecl",
        ),
    ),
)

MODELS = {"itransformer": "ITransformer"}

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DLinear": "baselines",
        "Forecaster": "forecaster",
        "ITransformer": "model",
        "Inverted": "model",
        "VanillaTransformer": "baselines",
        "flow_attention": "attention",
        "invert": "model",
        "prob_attention": "attention",
    },
)
