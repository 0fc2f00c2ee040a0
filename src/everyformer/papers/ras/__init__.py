"""Region-Adaptive Sampling for Diffusion Transformers (arXiv 2502.10389)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

_HERE = (
    "; here a small model of the same make with random weights, 1,024 image tokens and 77 of text, guidance, and an eighth "
    "of the image tokens at all but 6 of "
)

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
            setting="Stable Diffusion 3, the fastest setting reported" + _HERE + "28 steps; speed alone",
            method="region-adaptive sampling",
            baseline="all regions at every step",
            threshold=Threshold("ratio", 2.0),
            run="sd3",
            plan="plan_sd3",
        ),
        Claim(
            name="lumina",
            statement="Another model gains as much.",
            metric="speed-up",
            unit="x",
            better="higher",
            paper_value=2.51,
            paper_baseline=1.0,
            setting="Lumina-Next-T2I, the fastest setting reported" + _HERE + "30 steps; speed alone",
            method="region-adaptive sampling",
            baseline="all regions at every step",
            threshold=Threshold("ratio", 2.0),
            run="lumina",
            plan="plan_lumina",
        ),
        Claim(
            name="tokens",
            statement="Time falls nearly as far as the number of tokens that run.",
            metric="share of the token bound, the worse of ratios 0.5 and 0.25",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "the bound is the speed-up if time were proportional to the tokens that run, dense steps included; a DiT "
                "with random weights on 32 x 32 pixels, 1,024 tokens, 20 steps of which the first 4 are dense"
            ),
            method="region-adaptive sampling",
            baseline="the token bound",
            threshold=Threshold("bound", 0.85),
            run="tokens",
            plan="plan_tokens",
        ),
        Claim(
            name="quality",
            statement="At equal time the pictures are better than those of fewer dense steps.",
            metric="Fréchet distance",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "the paper reports FID of Stable Diffusion 3 and Lumina-Next at many speeds, none verified here; here a DiT "
                "of digits trained once, 256 tokens, 500 digits drawn from noise by seed, distance to held-out digits in "
                "the features of a classifier trained here"
            ),
            method="region-adaptive sampling",
            baseline="as many dense steps as take at least that time",
            threshold=Threshold("relative", 0.05),
            run="quality",
            plan="plan_quality",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "accelerate": "pipelines",
        "draw_updates": "method",
        "RegionSelector": "method",
        "Sampling": "method",
        "Schedule": "method",
        "TokenCache": "method",
    },
)
