"""SLA: sparse-linear attention (arXiv 2509.24006)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="sla",
    title="SLA: Beyond Sparsity in Diffusion Transformers via Fine-Tunable Sparse-Linear Attention",
    arxiv="2509.24006",
    published=None,
    authors=None,
    organisation=None,
    summary=(
        "Most weights of a video model's attention are tiny and together of low rank. SLA computes the few blocks that "
        "matter exactly, sends the broad remainder through linear attention with one small learned projection, and drops "
        "the rest; a short fine-tuning makes up for the difference."
    ),
    code="https://github.com/thu-ml/SLA",
    licence="Apache-2.0 (code); no weights published",
    tags=("attention", "diffusion", "video"),
    claims=(
        Claim(
            name="speed",
            statement="At 95% sparsity, attention runs many times faster than full attention.",
            metric="forward speed-up over full attention",
            unit="x",
            better="higher",
            paper_value=13.7,
            paper_baseline=1.0,
            setting="attention of Wan2.1-1.3B on a GPU, full attention by FlashAttention-2",
            method="SLA",
            baseline="F.scaled_dot_product_attention",
            threshold=Threshold("ratio", 8.0),
            run="speed",
            plan="plan_speed",
        ),
        Claim(
            name="speed_training",
            statement="Forward and backward together are faster too, so that fine-tuning gains as well as sampling.",
            metric="forward and backward speed-up over full attention",
            unit="x",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="the paper reports speed on a GPU; no figure for both passes together was verified",
            method="SLA",
            baseline="F.scaled_dot_product_attention",
            threshold=Threshold("ratio", 4.0),
            run="speed_training",
            plan="plan_training",
        ),
        Claim(
            name="quality",
            statement=(
                "After the same short fine-tuning, SLA closes more of the loss gap between sparse and full attention than "
                "its sparse or its linear branch alone."
            ),
            metric="share of the loss gap closed",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="the paper scores videos of Wan2.1-1.3B; here a small DiT on MNIST digits with 1,024 tokens",
            method="SLA",
            baseline="the better of sparse only and linear only",
            threshold=Threshold("difference", 10.0),
            run="quality",
            plan="plan_quality",
        ),
    ),
)

MIXERS = (
    {
        "name": "sla",
        "title": "sparse-linear attention",
        "arxiv": PAPER.arxiv,
        "where": "everyformer.papers.sla.mixer:SLAMixer",
        "time": "n² d / 20",
        "memory": "n d + n²/4096",
        "growth": 2.0,
        "causal": False,
        "mask": False,
        "cache": False,
        "any_length": True,
        "pretrained": True,
    },
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "SparseLinearAttention": "layer",
        "register_transformers": "integration",
        "replace_attention": "integration",
        "restore_attention": "integration",
    },
)
