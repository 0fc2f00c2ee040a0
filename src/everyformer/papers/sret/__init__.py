"""Sliced Recursive Transformer (arXiv 2111.05297)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="sret",
    title="Sliced Recursive Transformer",
    arxiv="2111.05297",
    published="2021-11-09",
    authors=3,
    organisation=None,
    summary=(
        "Runs each block of a small vision transformer twice with shared weights, a small projection of its own after "
        "each pass, and slices the attention into groups that differ from pass to pass, so that depth comes without "
        "many parameters and with less computation. The blocks recur in any network of tokens."
    ),
    code="https://github.com/szq0214/SReT",
    licence="MIT (code)",
    tags=(
        "vision",
        "attention",
    ),
    claims=(
        Claim(
            name="tiny",
            statement=(
                "Sharing weights over depth gives more accuracy for the same parameters: beside a network of the same "
                "kind without recursion, widened to as many parameters, for as many epochs. What the wider network "
                "reaches for the same computation stands with the figures."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=76.0,
            paper_baseline=72.2,
            setting=(
                "paper: ImageNet-1k, SReT_T of 4.8M parameters beside DeiT-T; here: CIFAR-10, 4,096 pictures, 186,000 "
                "parameters, 7 epochs, the stem's last stride 1 (smoke: digits)"
            ),
            method="recursive",
            baseline="without recursion, wider",
            threshold=Threshold("difference", 1.0),
            run="tiny",
            plan="plan_tiny",
        ),
        Claim(
            name="slicing",
            statement="Slicing keeps the accuracy to within two points, for less computation.",
            metric="top-1 accuracy lost by slicing",
            unit="points",
            better="lower",
            paper_value=0.1,
            paper_baseline=0.0,
            setting=(
                "paper: ImageNet-1k, SReT_S, 81.9% sliced and 82.0% whole; here: CIFAR-10, 4,096 pictures, 186,000 "
                "parameters, 12 epochs, the stem's last stride 1 (smoke: digits)"
            ),
            method="sliced",
            baseline="whole attention",
            threshold=Threshold("bound", 2.0),
            run="slicing",
            plan="plan_slicing",
        ),
        Claim(
            name="cost",
            statement="Slicing takes a fifth off the computation of SReT_T; the measured time stands with the figures.",
            metric="multiply-adds of one picture",
            unit="G",
            better="lower",
            paper_value=1.1,
            paper_baseline=1.4,
            setting="SReT_T at 224 pixels, at every scale (paper's table of models)",
            method="sliced",
            baseline="whole attention",
            threshold=Threshold("ratio", 1.2),
            run="cost",
            plan="plan_cost",
        ),
        Claim(
            name="depth",
            statement=(
                "A hundred applications of ten shared blocks can be trained: above 25% where chance is 10%. The same "
                "without learned residual coefficients stands beside it."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "paper: 100 to 1000 shared layers in 13M to 15M parameters (abstract; no configuration published); "
                "here: CIFAR-10, 4,096 pictures, 6 epochs, stages of 20, 50 and 30 applications (smoke: digits)"
            ),
            method="with learned coefficients",
            baseline="without",
            threshold=Threshold("bound", 25.0),
            run="depth",
            plan="plan_depth",
        ),
    ),
)

TIMM = True  # the model room registers them with timm

MIXERS = (
    {
        "name": "sliced",
        "title": "sliced recursive attention",
        "arxiv": PAPER.arxiv,
        "where": "everyformer.papers.sret.mixer:SlicedRecursiveAttention",
        "time": "n² d / 2",
        "memory": "n d",
        "growth": 2.0,
        "causal": False,
        "mask": False,
        "cache": False,
        "any_length": True,
        "pretrained": True,
    },
)

MODELS = {
    name: name
    for name in (
        "sret_t",
        "sret_t_unsliced",
        "sret_t_unsliced_384",
        "sret_lt",
        "sret_lt_16_14_1",
        "sret_lt_unsliced",
        "sret_s",
        "sret_s_unsliced",
        "sret_s_unsliced_384",
        "sret_s_unsliced_512",
    )
}

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Block": "model",
        "LearnableResidual": "model",
        "NonLinearProjection": "model",
        "Recursive": "model",
        "SReT": "model",
        "SlicedAttention": "model",
        "soft_distillation_loss": "model",
        **dict.fromkeys(MODELS, "model"),
    },
)
