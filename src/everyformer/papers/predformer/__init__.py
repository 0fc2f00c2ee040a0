"""PredFormer: Transformers Are Effective Spatial-Temporal Predictive Learners (arXiv 2410.04733)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

_HERE = (
    "; here Moving MNIST at half its size, ten frames of 32 x 32 with two digits of 14 x 14 to the next ten, networks of "
    "0.4 million parameters, batches of four, a minute and a half of training on one core, test digits that were not trained "
    "on"
)

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
            setting=(
                "Moving MNIST, 2,000 epochs, against a SimVP (version 1) of 58.0 million parameters where PredFormer has "
                "25.3 (the repository's later table: 47.9 %)" + _HERE + ", both trained for the same time"
            ),
            method="PredFormer",
            baseline="SimVP",
            threshold=Threshold("difference", 25.0),
            run="moving_mnist",
            plan="plan",
        ),
        Claim(
            name="taxibj_speed",
            statement="It is also several times faster on traffic maps.",
            metric="throughput",
            unit="frames/s",
            better="higher",
            paper_value=2364.0,
            paper_baseline=533.0,
            setting=(
                "TaxiBJ, traffic of Beijing; here the forward pass of the published sizes on one core, four maps of 32 x 32 "
                "to four, PredFormer as Binary-ST of 8.4 million parameters beside a SimVP (version 1) of 13.8"
            ),
            method="PredFormer",
            baseline="SimVP",
            threshold=Threshold("ratio", 2.0),
            run="taxibj_speed",
            plan="taxibj_plan",
        ),
        Claim(
            name="speed",
            statement="Of as many parameters, it predicts more frames a second than SimVP.",
            metric="throughput",
            unit="frames/s",
            better="higher",
            paper_value=302.0,
            paper_baseline=209.0,
            setting="Moving MNIST on a GPU, at 25.3 against 58.0 million parameters; here the forward pass of networks "
            "of 0.4 million parameters on ten frames of 32 x 32, on one core",
            method="PredFormer",
            baseline="SimVP",
            threshold=Threshold("ratio", 1.5),
            run="speed",
            plan="plan",
        ),
        Claim(
            name="arrangements",
            statement=(
                "Attention over time and space in turn predicts better than first all of one, then all of the other; here "
                "TSST against the better of the two factorised arrangements."
            ),
            metric="mean squared error of a frame",
            unit="",
            better="lower",
            paper_value=12.4,
            paper_baseline=16.9,
            setting="Moving MNIST, 25.3 million parameters"
            + _HERE.replace("0.4", "0.1").replace("a minute and a half", "half a minute")
            + ", all arrangements of the same four blocks (the triplets of three) and the same steps",
            method="TSST",
            baseline="factorised",
            threshold=Threshold("ratio", 1.1),
            run="arrangements",
            plan="plan",
        ),
        Claim(
            name="swiglu",
            statement="The gate of its feed-forward layers makes it more accurate than plain ones do.",
            metric="mean squared error of a frame",
            unit="",
            better="lower",
            paper_value=1.100,
            paper_baseline=1.171,
            setting="WeatherBench, temperature at two metres" + _HERE + ", as many steps",
            method="SwiGLU",
            baseline="MLP of as many parameters",
            threshold=Threshold("ratio", 1.03),
            run="swiglu",
            plan="plan",
        ),
    ),
)

MODELS = {
    "predformer_moving_mnist": "predformer_moving_mnist",
    "predformer_taxibj": "predformer_taxibj",
    "predformer_weatherbench": "predformer_weatherbench",
}

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "PredFormer": "model",
        "GatedTransformerBlock": "model",
        "SwiGLU": "model",
        "ARRANGEMENTS": "model",
        "arranged": "model",
        "predformer_moving_mnist": "model",
        "predformer_taxibj": "model",
        "predformer_weatherbench": "model",
        "SimVP": "simvp",
        "taxibj": "datasets",
        "weatherbench": "datasets",
    },
)
