"""Transformers in Time Series: A Survey (arXiv 2202.07125)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="ts_survey",
    title="Transformers in Time Series: A Survey",
    arxiv="2202.07125",
    published="2022-02-14",
    authors=7,
    organisation=None,
    summary=(
        "A survey of transformers for time series with three studies of its own: how they cope with long inputs, how "
        "deep they should be, and what separating trend from season gives. Here the studies run again for nine models "
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
            metric="test MSE with decomposition, of that without",
            unit="x",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "ETTm2, figures not verified; here ETTh2, mean of vanilla, Informer, LogSparse and Autoformer and of 96 and "
                "336 steps ahead, 100 steps of training at one rate for all; ETTh1, 96 steps ahead, is among the extras"
            ),
            method="with decomposition",
            baseline="without",
            threshold=Threshold("relative", 0.20),
            run="decomposition",
            plan="plan_decomposition",
        ),
        Claim(
            name="horizon",
            statement="The farther ahead the forecast, the more decomposition improves it.",
            metric="mean promotion by decomposition",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "ETTm2, horizons 96 to 720, figures not verified; here ETTh2, 336 beside 96 steps ahead, the same four "
                "models"
            ),
            method="longest horizon",
            baseline="shortest horizon",
            threshold=Threshold("difference", 0.0),
            run="horizon",
            plan="plan_decomposition",
        ),
        Claim(
            name="confound",
            statement=(
                "Decomposition improves more than instance normalisation, which also carries a window's level; not a "
                "claim of the survey but the control of its study."
            ),
            metric="test MSE, of that with neither",
            unit="x",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="the survey has no such control; here the models, sets and horizons of the decomposition claim",
            method="with decomposition",
            baseline="with instance normalisation",
            threshold=Threshold("relative", 0.05),
            run="confound",
            plan="plan_decomposition",
        ),
        Claim(
            name="robustness",
            statement="Given longer input, transformers with a token per time step forecast worse.",
            metric="MSE with the longest input, of that with the shortest; median",
            unit="x",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "ETTm2, 96 to 1,440 steps of input, figures not verified; here ETTh2, 96 to 720 steps, 96 ahead, 100 steps "
                "of training at one rate for all; median of vanilla, Informer and LogSparse (Reformer at the paper's scale)"
            ),
            method="a token per time step, median",
            baseline="worst of PatchTST, iTransformer and DLinear",
            threshold=Threshold("bound", 1.2),
            run="robustness",
            plan="plan_robustness",
        ),
        Claim(
            name="steady",
            statement=(
                "Given longer input, DLinear, PatchTST and iTransformer, which came after the survey, do not forecast worse."
            ),
            metric="MSE with the longest input, of that with the shortest; worst of three",
            unit="x",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="not in the survey; here ETTh2, 96 to 720 steps of input, the trainings of the claim before",
            method="worst of PatchTST, iTransformer and DLinear",
            baseline="a token per time step, median",
            threshold=Threshold("bound", 1.05),
            run="steady",
            plan="plan_robustness",
        ),
        Claim(
            name="size",
            statement="Many layers bring nothing: twelve lower the error of three by no more than 2%.",
            metric="MSE with the most layers, of that with three; median of five models",
            unit="x",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "ETTm2, best with 3 to 6 layers of up to 48, figures not verified; here ETTh1, 1 to 12 layers of vanilla, "
                "Informer, Autoformer, PatchTST and iTransformer, 96 steps to 96, 100 steps of training at one rate for all"
            ),
            method="twelve layers over three",
            baseline="if depth made no difference",
            threshold=Threshold("bound", 0.98),
            run="size",
            plan="plan_size",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Autoformer": "autoformer",
        "Budget": "harness",
        "DLinear": "decomposition",
        "Decomposed": "decomposition",
        "FEDformerLite": "autoformer",
        "Informer": "model",
        "Normalised": "decomposition",
        "PatchTST": "model",
        "SeriesDecomposition": "decomposition",
        "catalogue": "taxonomy",
        "create": "model",
        "study": "sweep",
        "table": "taxonomy",
    },
)
