"""FMViT: A multiple-frequency mixing Vision Transformer (arXiv 2311.05707)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="fmvit",
    title="FMViT: A multiple-frequency mixing Vision Transformer",
    arxiv="2311.05707",
    published="2023-11-09",
    authors=3,
    organisation=None,
    summary=(
        "A vision transformer for phones and accelerators that handles high and low frequencies in separate branches, "
        "and folds its many training branches into single convolutions for deployment. No code was published: the sizes "
        "inside our networks are our own, chosen to come near the published totals."
    ),
    code="https://github.com/tany0699/FMViT",
    licence="Apache-2.0 (a repository without code or weights)",
    tags=("vision",),
    claims=(
        Claim(
            name="tensorrt",
            statement=(
                "At the latency of a classic residual network it is more accurate; here narrow networks of equal measured "
                "latency on the processor at hand, trained on a part of CIFAR-10."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=83.3,
            paper_baseline=80.8,
            setting="ImageNet-1k at similar TensorRT latency, against ResNet-101; here PyTorch, 32 pictures at once",
            method="FMViT",
            baseline="ResNet",
            threshold=Threshold("difference", 1.0),
            run="tensorrt",
            plan="plan_tensorrt",
        ),
        Claim(
            name="coreml",
            statement=(
                "At the latency of MobileOne, another network that folds, it is more accurate; here narrow networks of "
                "equal measured latency on the processor at hand, trained on a part of CIFAR-10."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=78.5,
            paper_baseline=75.9,
            setting="ImageNet-1k at similar CoreML latency, against MobileOne; here PyTorch, 32 pictures at once",
            method="FMViT",
            baseline="MobileOne",
            threshold=Threshold("difference", 1.0),
            run="coreml",
            plan="plan_coreml",
        ),
        Claim(
            name="plain",
            statement=(
                "At the latency of a plain vision transformer it is more accurate; here narrow networks of equal measured "
                "latency on the processor at hand, trained on a part of CIFAR-10."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the paper was verified for this pair; here PyTorch, 32 pictures at once",
            method="FMViT",
            baseline="DeiT",
            threshold=Threshold("difference", 1.0),
            run="plain",
            plan="plan_plain",
        ),
        Claim(
            name="frequencies",
            statement=(
                "Mixing low and high frequencies is better than either alone at equal multiply-adds; here narrow networks "
                "on a part of CIFAR-10."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the paper's ablation was verified; the baseline is the better of the two alone",
            method="both",
            baseline="low or high alone",
            threshold=Threshold("difference", 0.5),
            run="frequencies",
            plan="plan_frequencies",
        ),
        Claim(
            name="folding",
            statement="Folding the branches makes the network faster and leaves its outputs as they are.",
            metric="time of a forward pass for one picture",
            unit="ms",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="FMViT-S with weights of chance at 224 pixels, PyTorch, both in turns in one run; outputs equal to 1e-5",
            method="folded",
            baseline="with branches",
            threshold=Threshold("ratio", 1.3),
            run="folding",
            plan="plan_folding",
        ),
    ),
)

MODELS = {f"fmvit_{size}": f"fmvit_{size}" for size in "tsmbl"}
TIMM = True  # the model room registers them with timm

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ConvolutionalFusionBlock": "model",
        "FMViT": "model",
        "FrequencyMixingBlock": "model",
        "GroupedMLP": "model",
        "LightAttention": "model",
        "to_onnx": "export",
        **dict.fromkeys(MODELS, "model"),
    },
)
