"""Searching for Efficient Multi-Stage Vision Transformers (arXiv 2109.00642)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="vit_resnas",
    title="Searching for Efficient Multi-Stage Vision Transformers",
    arxiv="2109.00642",
    published="2021-09-01",
    authors=3,
    organisation=None,
    summary=(
        "Searches for vision transformers of several stages: a network that holds all candidates is trained once, "
        "several of them at a time, and an evolutionary search picks the best for a given cost. Residual connections "
        "around the reductions keep training stable."
    ),
    code="https://github.com/yilunliao/vit-search",
    licence="CC BY-NC 4.0 (code and weights)",
    tags=("vision",),
    claims=(
        Claim(
            name="tiny",
            statement=(
                "A network that was searched for is more accurate than one made by hand; here small ones of equal "
                "multiply-adds, both trained from scratch on a part of CIFAR-10."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=80.8,
            paper_baseline=None,
            setting="ImageNet-1k, ViT-ResNAS-Tiny, 1.8G multiply-adds; no figure of the hand-made network was verified",
            method="searched",
            baseline="made by hand",
            threshold=Threshold("difference", 0.5),
            run="tiny",
            plan="plan_tiny",
        ),
        Claim(
            name="medium",
            statement=(
                "The networks are more accurate than Swin at equal multiply-adds; here narrow networks of three stages "
                "on a part of CIFAR-10."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=82.4,
            paper_baseline=81.3,
            setting=(
                "ImageNet-1k, ViT-ResNAS-Medium against Swin-T (the figure of its own paper), 4.5G multiply-adds each"
            ),
            method="ViT-ResNAS-Medium",
            baseline="Swin-T",
            threshold=Threshold("difference", 1.0),
            run="medium",
            plan="plan_medium",
        ),
        Claim(
            name="search",
            statement=(
                "Evolution finds better sub-networks than random search with as many evaluations, by accuracy with "
                "inherited weights on pictures held out; one evaluation on 1,000 pictures is good to about 1.5 points."
            ),
            metric="best held-out accuracy",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the paper's was verified; here a small super-network on a part of CIFAR-10",
            method="evolution",
            baseline="random search",
            threshold=Threshold("difference", 0.5),
            run="evolution",
            plan="plan_search",
        ),
        Claim(
            name="residual",
            statement=(
                "The skip around the spatial reductions, which costs no multiply-adds, raises accuracy; here in a small "
                "network of three stages on a part of CIFAR-10."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="the size of the paper's effect on ImageNet-1k was not verified, its direction was",
            method="residual reduction",
            baseline="plain reduction",
            threshold=Threshold("difference", 0.5),
            run="residual",
            plan="plan_tiny",
        ),
        Claim(
            name="one_pass",
            statement=(
                "One pass through several architectures takes less time than a pass for each on its share of the batch; "
                "with linear patches the gradients are equal."
            ),
            metric="time of a training step",
            unit="ms",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "no figure of the paper's; with convolutional patches batch norm couples the architectures, and the "
                "gradients differ"
            ),
            method="one pass",
            baseline="separate passes",
            threshold=Threshold("ratio", 1.1),
            run="one_pass",
            plan="plan_search",
        ),
        Claim(
            name="cost",
            statement="ViT-ResNAS-Small needs a sixth of the multiply-adds of DeiT-B, whose accuracy it is said to match.",
            metric="multiply-adds of one picture",
            unit="G",
            better="lower",
            paper_value=2.8,
            paper_baseline=17.6,
            setting="pictures of 224 x 224 pixels, counted at every scale on the full networks, nothing trained",
            method="ViT-ResNAS-Small",
            baseline="DeiT-B",
            threshold=Threshold("ratio", 6.0),
            run="cost",
            plan="plan_small",
        ),
    ),
)

MODELS = {name: name for name in ("vit_res_tiny", "vit_resnas_tiny", "vit_resnas_small", "vit_resnas_medium")}
TIMM = True  # the model room registers them with timm

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "MaskedLayerNorm": "model",
        "ResidualSpatialReduction": "model",
        "SPACES": "supernet",
        "Space": "supernet",
        "Stage": "model",
        "StageSpace": "supernet",
        "SuperNet": "supernet",
        "ViTResNAS": "model",
        "macs": "model",
        **dict.fromkeys(MODELS, "model"),
    },
)
