"""Factorization Vision Transformer: Modeling Long Range Dependency with Local Window Cost (arXiv 2312.08614)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="favit",
    title="Factorization Vision Transformer: Modeling Long Range Dependency with Local Window Cost",
    arxiv="2312.08614",
    published="2023-12-13",
    authors=5,
    organisation=None,
    summary=(
        "Attention is factorised over groups of channels: one group attends to a coarse map, the others to the places of "
        "dense and of dilated windows, fused across all windows. Every token sees the whole picture through a few keys, "
        "at about the cost of a local window. A backbone for high resolutions, said to be robust to corruptions."
    ),
    code="https://github.com/q2479036243/FaViT",
    licence="none stated (code; no weights published)",
    tags=(
        "vision",
        "attention",
    ),
    claims=(
        Claim(
            name="accuracy",
            statement=(
                "At equal cost it is more accurate than attention in local windows; here narrow networks of equal "
                "multiply-adds on a part of CIFAR-10."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=82.3,
            paper_baseline=81.3,
            setting="ImageNet-1k, FaViT-B2 of 4.5G multiply-adds against Swin-T, one point less by the abstract",
            method="FaViT-B2",
            baseline="Swin-T",
            threshold=Threshold("difference", 1.0),
            run="accuracy",
            plan="plan_accuracy",
        ),
        Claim(
            name="robustness",
            statement=(
                "On corrupted pictures it is ahead of local windows by more; here the mean over six corruptions (noise, "
                "salt and pepper, blur, contrast, brightness, pixels) of CIFAR-10's test pictures, for networks that saw "
                "clean pictures only."
            ),
            metric="top-1 accuracy on corrupted pictures",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="the abstract gives 7% over Swin-T for FaViT-B2 on corrupted ImageNet, and no figures for the two",
            method="FaViT-B2",
            baseline="Swin-T",
            threshold=Threshold("difference", 2.0),
            run="robustness",
            plan="plan_robustness",
        ),
        Claim(
            name="parameters",
            statement="FaViT-B2 has 14% fewer parameters than Swin-T.",
            metric="parameters",
            unit="M",
            better="lower",
            paper_value=24.0,
            paper_baseline=None,
            setting="counted at every scale on the full networks with 1,000 classes, nothing trained",
            method="FaViT-B2",
            baseline="Swin-T",
            threshold=Threshold("relative", 0.14),
            run="parameters",
            plan="plan_parameters",
        ),
        Claim(
            name="resolution",
            statement=(
                "The time of factorised attention grows linearly with the pixels, to 1024 x 1024: the exponent of time "
                "over pixels is at most 1.15. Windows, which see no further than themselves, and the counted exponents "
                "stand beside it."
            ),
            metric="exponent of attention's time over pixels",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "no figure of the paper was verified; here the attention of all of FaViT-B2's blocks, at 224 to 1024 "
                "pixels (smoke: 64 to 128), beside global attention and Swin's windows of equal width and heads"
            ),
            method="FaSA",
            baseline="global attention",
            threshold=Threshold("bound", 1.15),
            run="resolution",
            plan="plan_resolution",
        ),
        Claim(
            name="receptive_field",
            statement=(
                "From the first stage on every token sees the whole picture, where windows see their neighbourhood: "
                "nearly all pixels have a gradient to the centre of the first stage's map."
            ),
            metric="pixels that the first stage's centre depends on",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "no figure of the paper was verified; here FaViT-B2 and Swin-T with random weights, 448 pixels (smoke: B0, "
                "224 pixels)"
            ),
            method="FaViT-B2",
            baseline="Swin-T",
            threshold=Threshold("bound", 99.0),
            run="receptive_field",
            plan="plan_receptive_field",
        ),
    ),
)

MIXERS = (
    {
        "name": "fasa",
        "title": "factorised attention",
        "arxiv": PAPER.arxiv,
        "where": "everyformer.papers.favit.mixer:FactorizedMixer",
        "time": "n w d + n² d / 64",
        "memory": "n d",
        "growth": 2.0,
        "causal": False,
        "mask": False,
        "cache": False,
        "any_length": True,
        "pretrained": False,
    },
)

MODELS = {f"favit_b{size}": f"favit_b{size}" for size in range(4)}
TIMM = True  # the model room registers them with timm

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Block": "model",
        "FaViT": "model",
        "FactorizedSelfAttention": "model",
        **dict.fromkeys(MODELS, "model"),
    },
)
