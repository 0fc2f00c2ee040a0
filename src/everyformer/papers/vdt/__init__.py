"""VDT: General-purpose Video Diffusion Transformers via Mask Modeling (arXiv 2305.13311)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="vdt",
    title="VDT: General-purpose Video Diffusion Transformers via Mask Modeling",
    arxiv="2305.13311",
    published="2023-05-22",
    authors=7,
    organisation=None,
    summary=(
        "A diffusion transformer for video whose one mask input covers generation, prediction, interpolation and "
        "completion. Attention alternates between time and space, and given frames are simply left without noise."
    ),
    code="https://github.com/RERV/VDT",
    licence="non-commercial (code and weights)",
    tags=(
        "diffusion",
        "video",
    ),
    claims=(
        Claim(
            name="ucf101",
            statement="It generates convincing short videos.",
            metric="Frechet video distance",
            unit="FVD",
            better="lower",
            paper_value=225.7,
            paper_baseline=None,
            setting="UCF101, unconditional",
            method="VDT",
        ),
        Claim(
            name="cityscapes",
            statement="The same model predicts driving videos.",
            metric="Frechet video distance",
            unit="FVD",
            better="lower",
            paper_value=142.3,
            paper_baseline=None,
            setting="Cityscapes prediction",
            method="VDT",
        ),
    ),
)
