"""PredFormer: Transformers Are Effective Spatial-Temporal Predictive Learners (arXiv 2410.04733)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="predformer",
    title="PredFormer: Transformers Are Effective Spatial-Temporal Predictive Learners",
    arxiv="2410.04733",
    published="2024-10-06",
    authors=6,
    organisation=None,
    summary=(
        "Predicts the next frames of a video with nothing but gated transformer blocks over patches and time, arranged "
        "in nine ways to suit the data. No recurrence, no convolution, many frames a second."
    ),
    code="https://github.com/yyyujintang/PredFormer",
    licence="no licence file; package metadata declare Apache-2.0 (code)",
    tags=(
        "spacetime",
        "video",
    ),
    claims=(
        Claim(
            name="moving_mnist",
            statement="The prediction error on moving digits is about halved.",
            metric="reduction of MSE against SimVP",
            unit="%",
            better="higher",
            paper_value=51.3,
            paper_baseline=0.0,
            setting="Moving MNIST",
            method="PredFormer",
            baseline="SimVP",
        ),
        Claim(
            name="taxibj_speed",
            statement="It is also several times faster on traffic maps.",
            metric="throughput",
            unit="frames/s",
            better="higher",
            paper_value=2364.0,
            paper_baseline=533.0,
            setting="TaxiBJ, traffic of Beijing",
            method="PredFormer",
            baseline="SimVP",
        ),
    ),
)
