"""Implicit factorized transformer approach to fast prediction of turbulent channel flows (arXiv 2412.18840)."""

from everyformer.catalog import Claim, Paper

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
            setting="filtered channel flow at friction Reynolds numbers 180, 395 and 590; figures not verified",
            method="IFactFormer-m",
            baseline="IFactFormer-o, FNO, IFNO",
        ),
    ),
)
