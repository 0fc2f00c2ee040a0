"""Q-Sched: Pushing the Boundaries of Few-Step Diffusion Models with Quantization-Aware Scheduling (arXiv 2509.01624)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="qsched",
    title="Q-Sched: Pushing the Boundaries of Few-Step Diffusion Models with Quantization-Aware Scheduling",
    arxiv="2509.01624",
    published=None,
    authors=None,
    organisation=None,
    summary=(
        "Makes a quantised image generator of few steps as good as the original by adjusting two coefficients of the "
        "sampler at each step, found on a handful of prompts. No weight is touched, so any scheduler and any quantiser "
        "can be combined."
    ),
    code="https://github.com/enyac-group/q-sched",
    licence="none verified (code)",
    tags=(
        "diffusion",
        "precision",
    ),
    claims=(
        Claim(
            name="lcm",
            statement="With adjusted sampling a quantised model beats its full-precision original.",
            metric="FID gain over the full-precision model",
            unit="%",
            better="higher",
            paper_value=15.5,
            paper_baseline=0.0,
            setting="4-step latent consistency model, against FP16",
            method="Q-Sched",
            baseline="FP16",
        ),
        Claim(
            name="pcm",
            statement="The same holds for another family of few-step models.",
            metric="FID gain over the full-precision model",
            unit="%",
            better="higher",
            paper_value=16.6,
            paper_baseline=0.0,
            setting="8-step phased consistency model, against FP16",
            method="Q-Sched",
            baseline="FP16",
        ),
    ),
)
