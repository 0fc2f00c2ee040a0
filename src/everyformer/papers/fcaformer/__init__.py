"""Fcaformer: Forward Cross Attention in Hybrid Vision Transformer (arXiv 2211.07198)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="fcaformer",
    title="Fcaformer: Forward Cross Attention in Hybrid Vision Transformer",
    arxiv="2211.07198",
    published="2022-11-14",
    authors=3,
    organisation=None,
    summary=(
        "Blocks of a hybrid vision transformer hand a few merged tokens on to all later blocks of their stage, which "
        "attend to them beside their own. The features that earlier blocks found are reused for little extra cost."
    ),
    code="https://github.com/hkzhang91/FcaFormer",
    licence="none verified (code)",
    tags=("vision",),
    claims=(
        Claim(
            name="plain",
            statement="Passing tokens forward lifts a plain transformer of the same size.",
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=74.3,
            paper_baseline=72.2,
            setting="ImageNet-1k, FcaFormer-L0 of 5.9M parameters against DeiT-T",
            method="FcaFormer-L0",
            baseline="DeiT-T",
        ),
        Claim(
            name="hybrid",
            statement="A hybrid of half the size is more accurate than ConvNeXt-T.",
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=83.1,
            paper_baseline=82.1,
            setting="ImageNet-1k, FcaFormer-L2 of 16.3M parameters against ConvNeXt-T of 29M",
            method="FcaFormer-L2",
            baseline="ConvNeXt-T",
        ),
    ),
)
