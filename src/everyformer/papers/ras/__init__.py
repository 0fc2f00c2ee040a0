"""Region-Adaptive Sampling for Diffusion Transformers (arXiv 2502.10389)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="ras",
    title="Region-Adaptive Sampling for Diffusion Transformers",
    arxiv="2502.10389",
    published="2025-02-14",
    authors=7,
    organisation=None,
    summary=(
        "Spends each step of a diffusion transformer on the regions of the picture that still change and keeps the rest "
        "from the step before. No training; one context manager around an existing pipeline."
    ),
    code="https://github.com/microsoft/RAS",
    licence="MIT (code)",
    tags=("diffusion",),
    claims=(
        Claim(
            name="sd3",
            statement="Sampling gets more than twice as fast with little loss.",
            metric="speed-up",
            unit="x",
            better="higher",
            paper_value=2.36,
            paper_baseline=1.0,
            setting="Stable Diffusion 3, the fastest setting reported",
            method="region-adaptive sampling",
            baseline="all regions at every step",
        ),
        Claim(
            name="lumina",
            statement="Another model gains as much.",
            metric="speed-up",
            unit="x",
            better="higher",
            paper_value=2.51,
            paper_baseline=1.0,
            setting="Lumina-Next-T2I, the fastest setting reported",
            method="region-adaptive sampling",
            baseline="all regions at every step",
        ),
    ),
)
