"""Searching for Efficient Multi-Stage Vision Transformers (arXiv 2109.00642)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="vit_resnas",
    title="Searching for Efficient Multi-Stage Vision Transformers",
    arxiv="2109.00642",
    published="2021-09-01",
    authors=3,
    organisation=None,
    summary=(
        "Searches for vision transformers of several stages: a network that holds all candidates is trained once, "
        "several of them at a time, and an evolutionary search picks the best for a given cost. Residual connections "
        "around the reductions keep training stable."
    ),
    code="https://github.com/yilunliao/vit-search",
    licence="CC BY-NC 4.0 (code and weights)",
    tags=("vision",),
    claims=(
        Claim(
            name="tiny",
            statement="Searched networks are accurate for their cost.",
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=80.8,
            paper_baseline=None,
            setting="ImageNet-1k, ViT-ResNAS-Tiny, 1.8G multiply-adds",
            method="ViT-ResNAS-Tiny",
        ),
        Claim(
            name="medium",
            statement="The trade-off continues to larger ones.",
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=82.4,
            paper_baseline=None,
            setting="ImageNet-1k, ViT-ResNAS-Medium, 4.5G multiply-adds",
            method="ViT-ResNAS-Medium",
        ),
    ),
)
