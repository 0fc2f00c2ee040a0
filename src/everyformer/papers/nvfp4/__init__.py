"""Pretraining Large Language Models with NVFP4 (arXiv 2509.25149)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

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
            statement=(
                "A model trained in four bits answers as well as one trained in eight; what runs here is a small GPT "
                "that chooses the true continuation of a play out of ten."
            ),
            metric="accuracy below FP8",
            unit="points",
            better="lower",
            paper_value=0.04,
            paper_baseline=0.0,
            setting="MMLU-pro of a 12B hybrid model trained on 10T tokens: 62.58 against 62.62 in FP8",
            method="NVFP4",
            baseline="FP8",
            threshold=Threshold("bound", 3.0),
            run="continuations",
            plan="plan_paper",
        ),
        Claim(
            name="loss",
            statement="Its validation loss stays close throughout.",
            metric="validation loss above FP8",
            unit="%",
            better="lower",
            paper_value=1.0,
            paper_baseline=0.0,
            setting="12B hybrid model, stable phase of training; here a small GPT on plays, at the end of training",
            method="NVFP4",
            baseline="FP8",
            threshold=Threshold("bound", 1.5),
            run="loss_above_fp8",
            plan="plan_paper",
        ),
        Claim(
            name="loss_bf16",
            statement="It stays close to that of training in bfloat16 as well.",
            metric="validation loss above bf16",
            unit="%",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="the paper compares with FP8; here a small GPT on plays, at the end of training",
            method="NVFP4",
            baseline="bf16",
            threshold=Threshold("bound", 1.5),
            run="loss_above_bf16",
            plan="plan_paper",
        ),
        Claim(
            name="ablation",
            statement="Each part of the recipe helps: without any one of them the loss is no lower.",
            metric="least loss above the full recipe, of four recipes that lack a part each",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="the paper plots curves of the 12B model without figures; here a small GPT on plays",
            method="the best recipe that lacks a part",
            baseline="full recipe",
            threshold=Threshold("bound", 0.0),
            run="ablation",
            plan="plan_paper",
        ),
        Claim(
            name="memory",
            statement="What linear layers keep for the backward pass shrinks by the width of the numbers.",
            metric="bytes kept for the backward pass",
            unit="MB",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="the paper gives no figure; here one linear layer of a feed-forward network, 768 to 3072",
            method="NVFP4",
            baseline="bf16",
            threshold=Threshold("ratio", 3.0),
            run="memory",
            plan="plan_paper",
        ),
        Claim(
            name="quantiser",
            statement="The quantiser here is at least as fast as torchao's, and gives the same bits.",
            metric="values a second",
            unit="M/s",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="not a claim of the paper, whose kernels need a Blackwell GPU; eager PyTorch on this CPU",
            method="everyformer",
            baseline="torchao",
            threshold=Threshold("ratio", 1.0),
            run="quantiser",
            plan="plan_paper",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    dict.fromkeys(("PackedLinear", "Recipe", "compress", "convert", "high_precision_forward", "linear"), "method"),
)
