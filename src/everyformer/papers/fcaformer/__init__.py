"""Fcaformer: Forward Cross Attention in Hybrid Vision Transformer (arXiv 2211.07198)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="fcaformer",
    title="Fcaformer: Forward Cross Attention in Hybrid Vision Transformer",
    arxiv="2211.07198",
    published="2022-11-14",
    authors=3,
    organisation=None,
    summary=(
        "Blocks of a hybrid vision transformer hand a few merged tokens on to all later blocks of their stage, which "
        "attend to them beside their own. The features that earlier blocks found are reused for little extra cost."
    ),
    code="https://github.com/hkzhang91/FcaFormer",
    licence="none stated (code, weights of L2)",
    tags=("vision",),
    claims=(
        Claim(
            name="plain",
            statement=(
                "Passing tokens forward lifts a plain transformer of the same size; here narrow networks of equal "
                "multiply-adds on a part of CIFAR-10."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=74.3,
            paper_baseline=72.2,
            setting="ImageNet-1k, FcaFormer-L0 of 5.9M parameters against DeiT-T",
            method="FcaFormer-L0",
            baseline="DeiT-T",
            threshold=Threshold("difference", 1.0),
            run="plain",
            plan="plan_plain",
        ),
        Claim(
            name="hybrid",
            statement=(
                "A hybrid of half the size is more accurate than ConvNeXt-T; here narrow networks of equal multiply-adds "
                "on a part of CIFAR-10, the hybrid with fewer parameters."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=83.1,
            paper_baseline=82.1,
            setting="ImageNet-1k, FcaFormer-L2 of 16.3M parameters against ConvNeXt-T of 29M",
            method="FcaFormer-L2",
            baseline="ConvNeXt-T",
            threshold=Threshold("difference", 1.0),
            run="hybrid",
            plan="plan_hybrid",
        ),
        Claim(
            name="cross_tokens",
            statement=(
                "The cross tokens themselves raise accuracy: the same network without them, its feed-forward parts "
                "widened to as many parameters, is less accurate."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the paper's ablation was verified; here a narrow hybrid on a part of CIFAR-10",
            method="with cross tokens",
            baseline="without, as many parameters",
            threshold=Threshold("difference", 0.5),
            run="cross_tokens",
            plan="plan_cross_tokens",
        ),
        Claim(
            name="cost",
            statement="FcaFormer-L2 needs a fifth fewer multiply-adds than ConvNeXt-T.",
            metric="multiply-adds of one picture",
            unit="G",
            better="lower",
            paper_value=3.6,
            paper_baseline=4.5,
            setting="pictures of 224 x 224 pixels, counted at every scale on the full networks, nothing trained",
            method="FcaFormer-L2",
            baseline="ConvNeXt-T",
            threshold=Threshold("ratio", 1.2),
            run="cost",
            plan="plan_hybrid",
        ),
    ),
)

MODELS = {f"fcaformer_l{size}": f"fcaformer_l{size}" for size in range(5)}
TIMM = True  # the model room registers them with timm

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "FcaBlock": "model",
        "FcaFormer": "model",
        "ForwardCrossAttention": "model",
        **dict.fromkeys(MODELS, "model"),
    },
)
