"""Q-Sched: Pushing the Boundaries of Few-Step Diffusion Models with Quantization-Aware Scheduling (arXiv 2509.01624)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

_HERE = (
    "; here a small consistency-distilled DiT of digits in W4A8, Fréchet distance to held-out digits in the features "
    "of a classifier trained here, one model for all seeds and calibration noise, prompts and drawings by seed"
)

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
    licence="BSD-3-Clause (code); no weights published",
    tags=("diffusion", "precision"),
    claims=(
        Claim(
            name="lcm",
            statement="With adjusted sampling a quantised model beats its full-precision original.",
            metric="FID gain over the full-precision model",
            unit="%",
            better="higher",
            paper_value=15.5,
            paper_baseline=0.0,
            setting="4-step latent consistency model, against FP16" + _HERE,
            method="Q-Sched",
            baseline="full precision",
            threshold=Threshold("difference", 5.0),
            run="lcm",
            plan="plan_lcm",
        ),
        Claim(
            name="pcm",
            statement="The same holds for another sampler of few steps.",
            metric="FID gain over the full-precision model",
            unit="%",
            better="higher",
            paper_value=16.6,
            paper_baseline=0.0,
            setting="8-step phased consistency model, against FP16"
            + _HERE
            + ", drawn by the phased models' TCD sampler",
            method="Q-Sched",
            baseline="full precision",
            threshold=Threshold("difference", 5.0),
            run="pcm",
            plan="plan_pcm",
        ),
        Claim(
            name="calibration",
            statement=(
                "Coefficients found on sixteen prompts make a quantised model better than the sampler as it was, on "
                "noise that the search has not seen."
            ),
            metric="Fréchet distance",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="the paper quantises text-to-image models to W4A8 and W4A4; no figure without calibration was verified"
            + _HERE
            + ", 4 steps",
            method="Q-Sched",
            baseline="the same quantised model, all coefficients 1",
            threshold=Threshold("relative", 0.10),
            run="calibration",
            plan="plan_lcm",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Coefficients": "method",
        "QSchedScheduler": "method",
        "calibrate": "calibration",
        "Calibration": "calibration",
        "jaq_loss": "calibration",
        "quantise": "precision",
    },
)
