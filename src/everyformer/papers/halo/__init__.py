"""HALO: Hadamard-Assisted Lossless Optimization for Efficient Low-Precision LLM Training and Fine-Tuning (arXiv 2501.02625)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="halo",
    title="HALO: Hadamard-Assisted Lossless Optimization for Efficient Low-Precision LLM Training and Fine-Tuning",
    arxiv="2501.02625",
    published="2025-01-05",
    authors=6,
    organisation=None,
    summary=(
        "Fine-tunes language models with every large product, forward and backward, in eight bits or fewer: Hadamard "
        "rotations placed around each product spread out the outliers that would spoil the rounding. It also shrinks "
        "what sharded training has to communicate."
    ),
    code="https://github.com/IST-DASLab/HALO",
    licence="none verified (code)",
    tags=(
        "precision",
        "language",
    ),
    claims=(
        Claim(
            name="speed",
            statement="Full fine-tuning becomes faster end to end.",
            metric="speed-up over bf16",
            unit="x",
            better="higher",
            paper_value=1.31,
            paper_baseline=1.0,
            setting="full fine-tuning of a LLaMA-family model on RTX 4090, the best reported",
            method="HALO",
            baseline="bf16",
        ),
        Claim(
            name="accuracy",
            statement="Accuracy stays near that of training in full precision.",
            metric="task accuracy",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="LLaMA-family models on GSM8k, ViGGO and SQL; figures not verified",
            method="HALO",
            baseline="bf16",
        ),
    ),
)
