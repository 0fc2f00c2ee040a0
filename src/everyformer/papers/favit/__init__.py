"""Factorization Vision Transformer: Modeling Long Range Dependency with Local Window Cost (arXiv 2312.08614)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="favit",
    title="Factorization Vision Transformer: Modeling Long Range Dependency with Local Window Cost",
    arxiv="2312.08614",
    published="2023-12-13",
    authors=5,
    organisation=None,
    summary=(
        "Attention heads are divided into groups that look at the image with growing dilation, so that together they "
        "cover it while each costs no more than a local window. A backbone for high resolutions with robustness as a by- "
        "product."
    ),
    code="https://github.com/q2479036243/FaViT",
    licence="none verified (code)",
    tags=(
        "vision",
        "attention",
    ),
    claims=(
        Claim(
            name="accuracy",
            statement="At the cost of local windows it beats them on ImageNet.",
            metric="gain in top-1 accuracy over Swin-T",
            unit="points",
            better="higher",
            paper_value=1.0,
            paper_baseline=0.0,
            setting="ImageNet-1k, FaViT-B2 against Swin-T",
            method="FaViT-B2",
            baseline="Swin-T",
        ),
        Claim(
            name="robustness",
            statement="It also degrades less on corrupted pictures.",
            metric="gain in robustness over Swin-T",
            unit="%",
            better="higher",
            paper_value=7.0,
            paper_baseline=0.0,
            setting="corrupted ImageNet, FaViT-B2 against Swin-T",
            method="FaViT-B2",
            baseline="Swin-T",
        ),
    ),
)
