"""A Survey of Techniques for Optimizing Transformer Inference (arXiv 2307.07982)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="inference_survey",
    title="A Survey of Techniques for Optimizing Transformer Inference",
    arxiv="2307.07982",
    published="2023-07-16",
    authors=5,
    organisation=None,
    summary=(
        "A survey of how transformers are made cheaper to run: distillation, pruning, quantisation, light architectures, "
        "and what the hardware adds. Here its methods become compressors that compose, with size, memory, latency and "
        "quality before and after."
    ),
    code=None,
    licence="no code known",
    tags=(
        "survey",
        "precision",
    ),
    claims=(
        Claim(
            name="compression",
            statement="Compression methods trade size for quality along a curve that can be measured.",
            metric="quality kept at a given size",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="a survey: no figure of its own",
        ),
    ),
)
