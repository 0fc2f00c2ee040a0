"""Diffscaler: Enhancing the Generative Prowess of Diffusion Transformers (arXiv 2404.09976)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="diffscaler",
    title="Diffscaler: Enhancing the Generative Prowess of Diffusion Transformers",
    arxiv="2404.09976",
    published="2024-04-15",
    authors=3,
    organisation=None,
    summary=(
        "One pretrained diffusion transformer learns a new data set through scales, shifts and low-rank additions at "
        "each of its layers, with everything else frozen. A single model so covers several image domains at a small cost "
        "for each."
    ),
    code=None,
    licence="no code known",
    tags=(
        "diffusion",
        "adapter",
    ),
    claims=(
        Claim(
            name="one_model",
            statement="A few task parameters per data set come close to fine-tuning the whole model.",
            metric="Frechet distance",
            unit="FID",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="FFHQ, Flowers, CUB and others; no single figure verified",
            method="Diffscaler",
            baseline="full fine-tuning",
        ),
    ),
)
