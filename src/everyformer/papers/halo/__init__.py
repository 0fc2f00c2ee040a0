"""HALO: Hadamard-Assisted Lossless Optimization for Efficient Low-Precision LLM Training and Fine-Tuning (arXiv 2501.02625)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="halo",
    title="HALO: Hadamard-Assisted Lossless Optimization for Efficient Low-Precision LLM Training and Fine-Tuning",
    arxiv="2501.02625",
    published="2025-01-05",
    authors=6,
    organisation=None,
    summary=(
        "Fine-tunes language models with every large product, forward and backward, in eight bits or fewer: Hadamard "
        "rotations placed around each product spread out the outliers that would spoil the rounding. It also shrinks "
        "what sharded training has to communicate."
    ),
    code="https://github.com/IST-DASLab/HALO",
    licence="MIT (code)",
    tags=(
        "precision",
        "language",
    ),
    claims=(
        Claim(
            name="speed",
            statement="Full fine-tuning becomes faster end to end; run here on the layers of a narrow LLaMA.",
            metric="speed-up over bf16",
            unit="x",
            better="higher",
            paper_value=1.31,
            paper_baseline=1.0,
            setting="full fine-tuning of a LLaMA-family model on RTX 4090, the best reported",
            method="HALO-2, int8",
            baseline="bf16",
            threshold=Threshold("ratio", 1.2),
            run="speed",
            plan="plan_speed",
        ),
        Claim(
            name="accuracy",
            statement=(
                "Fine-tuning stays within a per cent of the loss that bf16 reaches, in a model with outlier channels; run "
                "here on a small LLaMA whose outliers were put in by an exact reparameterisation."
            ),
            metric="test loss above that of bf16",
            unit="%",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="LLaMA-family models on GSM8k, ViGGO and SQL, as task accuracy; figures not verified",
            method="HALO-2, int8",
            baseline="rounding alone, int8",
            threshold=Threshold("bound", 1.0),
            run="accuracy",
            plan="plan_accuracy",
        ),
        Claim(
            name="rotation",
            statement="Where there are outlier channels, rounding alone falls behind; run here on the same small LLaMA.",
            metric="test loss",
            unit="nats per byte",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="LLaMA-family models on GSM8k, ViGGO and SQL, as task accuracy; figures not verified",
            method="HALO-2, int8",
            baseline="rounding alone, int8",
            threshold=Threshold("relative", 0.02),
            run="rotation",
            plan="plan_rotation",
        ),
        Claim(
            name="natural",
            statement="The same per cent holds in the small LLaMA as it was pretrained, with the outliers that it has.",
            metric="test loss above that of bf16",
            unit="%",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="LLaMA-family models on GSM8k, ViGGO and SQL, as task accuracy; figures not verified",
            method="HALO-2, int8",
            baseline="rounding alone, int8",
            threshold=Threshold("bound", 1.0),
            run="natural",
            plan="plan_natural",
        ),
        Claim(
            name="communication",
            statement="Sharded training gathers half the bytes of weights; run here with two gloo processes.",
            metric="bytes gathered in a step",
            unit="MiB",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="HQ-FSDP on four RTX 4090, reported as time; int8 weights instead of bf16",
            method="HQ-FSDP, int8",
            baseline="FSDP, bf16",
            threshold=Threshold("ratio", 1.8),
            run="communication",
            plan="plan_communication",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(__name__, dict.fromkeys(("HaloLinear", "convert", "gather_rounded"), "method"))
