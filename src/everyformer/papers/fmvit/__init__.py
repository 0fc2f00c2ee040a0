"""FMViT: A multiple-frequency mixing Vision Transformer (arXiv 2311.05707)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="fmvit",
    title="FMViT: A multiple-frequency mixing Vision Transformer",
    arxiv="2311.05707",
    published="2023-11-09",
    authors=3,
    organisation=None,
    summary=(
        "A vision transformer for phones and accelerators that handles high and low frequencies in separate branches, "
        "and folds its many training branches into single convolutions for deployment."
    ),
    code=None,
    licence="no code found",
    tags=("vision",),
    claims=(
        Claim(
            name="tensorrt",
            statement="At a similar latency it is more accurate than a classic convolutional network.",
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=83.3,
            paper_baseline=80.8,
            setting="ImageNet-1k at similar TensorRT latency, against ResNet-101",
            method="FMViT",
            baseline="ResNet-101",
        ),
        Claim(
            name="coreml",
            statement="The same holds on a phone.",
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=78.5,
            paper_baseline=75.9,
            setting="ImageNet-1k at similar CoreML latency, against MobileOne",
            method="FMViT",
            baseline="MobileOne",
        ),
    ),
)
