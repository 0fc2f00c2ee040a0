"""Pretraining Large Language Models with NVFP4 (arXiv 2509.25149)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="nvfp4",
    title="Pretraining Large Language Models with NVFP4",
    arxiv="2509.25149",
    published="2025-09-29",
    authors=None,
    organisation="NVIDIA",
    summary=(
        "A recipe to pretrain language models with four-bit weights, activations and gradients: blocks of sixteen with "
        "eight-bit scales, rotations, stochastic rounding, and a few layers left in higher precision. Training cost "
        "falls while the loss stays within about a per cent."
    ),
    code="https://github.com/NVIDIA/TransformerEngine",
    licence="Apache-2.0 (TransformerEngine)",
    tags=(
        "precision",
        "language",
    ),
    claims=(
        Claim(
            name="mmlu_pro",
            statement="A model trained in four bits answers as well as one trained in eight.",
            metric="MMLU-pro accuracy",
            unit="%",
            better="higher",
            paper_value=62.58,
            paper_baseline=62.62,
            setting="12B hybrid model on 10T tokens, against FP8",
            method="NVFP4",
            baseline="FP8",
        ),
        Claim(
            name="loss",
            statement="Its validation loss stays close throughout.",
            metric="validation loss above FP8",
            unit="%",
            better="lower",
            paper_value=1.0,
            paper_baseline=0.0,
            setting="12B hybrid model, stable phase of training",
            method="NVFP4",
            baseline="FP8",
        ),
    ),
)
