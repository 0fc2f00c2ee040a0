"""Implicit factorized transformer approach to fast prediction of turbulent channel flows (arXiv 2412.18840)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

_MODELS = (
    "the four models have about as many parameters, and equal data, training steps and choice of the rate; the authors' "
    "loss on single steps"
)
_PLANE = (
    "; here plane Kolmogorov flow, simulated on 64 x 64 points and filtered to 32 x 32, 0.4 time units apart; "
    + _MODELS
)
_BOX = (
    "; here a minimal channel (bulk Reynolds number 1800), simulated on 24 x 41 x 24 points and filtered to "
    "12 x 21 x 12, 0.4 time units apart"
)

PAPER = Paper(
    slug="ifactformer",
    title="Implicit factorized transformer approach to fast prediction of turbulent channel flows",
    arxiv="2412.18840",
    published="2024-12-25",
    authors=3,
    organisation=None,
    summary=(
        "Predicts the velocity field of turbulent channel flow step after step with attention factorised over the axes, "
        "applied in parallel and iterated with shared weights. Long rollouts keep the statistics of the flow at a "
        "fraction of a solver's time."
    ),
    code="https://github.com/huiyu-2002/IFactFormer-m",
    licence="no licence file (code)",
    tags=("spacetime",),
    claims=(
        Claim(
            name="stability",
            statement="Rollouts stay stable where other neural operators drift away.",
            metric="error of statistics in a long rollout",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "filtered channel flow at friction Reynolds numbers 180, 395 and 590; figures not verified"
                + _PLANE
                + "; mean |log10| of the energy spectrum over the true one, in the last quarter of 250 snapshots. A rollout "
                "counts as a decade if it is not alive: its model has half the error of no change or more, or it changes, "
                "or stays correlated, more than twice or less than half as much as the flow"
            ),
            method="IFactFormer-m",
            baseline="the best of IFactFormer-o, FNO, IFNO",
            threshold=Threshold("ratio", 1.5),
            run="stability",
            plan="plan",
        ),
        Claim(
            name="one_step",
            statement="It predicts the next field better than the original IFactFormer, FNO and IFNO.",
            metric="relative error of the next snapshot",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="filtered channel flow; figures not verified" + _PLANE,
            method="IFactFormer-m",
            baseline="the best of IFactFormer-o, FNO, IFNO",
            threshold=Threshold("ratio", 1.1),
            run="one_step",
            plan="plan",
        ),
        Claim(
            name="parallel",
            statement="Attention along the axes side by side predicts better than along one after the other.",
            metric="relative error of the next snapshot",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="filtered channel flow; figures not verified" + _PLANE,
            method="IFactFormer-m",
            baseline="IFactFormer-o",
            threshold=Threshold("ratio", 1.1),
            run="parallel",
            plan="plan",
        ),
        Claim(
            name="channel",
            statement="In a channel, mean velocity, fluctuations and Reynolds stress of long rollouts are those of the flow.",
            metric="error of statistics in a long rollout",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "filtered channel flow at friction Reynolds numbers 180, 395 and 590; figures not verified"
                + _BOX
                + "; "
                + _MODELS
                + "; mean relative error of five profiles in the last quarter of 150 snapshots, 1 for a rollout that is "
                "not alive (as in stability)"
            ),
            method="IFactFormer-m",
            baseline="the best of IFactFormer-o, FNO, IFNO",
            threshold=Threshold("ratio", 1.5),
            run="channel",
            plan="plan",
        ),
        Claim(
            name="speed",
            statement="A snapshot ahead takes far less time than a solver needs for it.",
            metric="time of a snapshot ahead",
            unit="s",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "against large-eddy simulation of a channel; figures not verified"
                + _BOX
                + "; against the simulation that is filtered, in float32 on the same cores"
            ),
            method="IFactFormer-m",
            baseline="solver",
            threshold=Threshold("ratio", 3.0),
            run="speed",
            plan="plan",
        ),
    ),
)

MODELS = {"ifactformer_m": "ifactformer_m", "ifactformer_o": "ifactformer_o"}

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "IFactFormer": "model",
        "FactorizedAttention": "model",
        "ifactformer_m": "model",
        "ifactformer_o": "model",
        "Forecaster": "forecast",
        "pairs": "forecast",
        "read_flow": "forecast",
        "relative_error": "forecast",
        "rollout": "forecast",
    },
)
