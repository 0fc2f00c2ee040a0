"""ByteTransformer: encoders without padding (arXiv 2210.03052)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="bytetransformer",
    title="ByteTransformer: A High-Performance Transformer Boosted for Variable-Length Inputs",
    arxiv="2210.03052",
    published="2022-10-06",
    authors=8,
    organisation=None,
    summary=(
        "Batches of sentences are padded to the longest one, and an encoder then spends much of its time on padding. "
        "Packing the valid tokens into one row, and attending within each sentence, leaves the result as it was and the "
        "work in proportion to the text. One call converts a Hugging Face encoder."
    ),
    code="https://github.com/bytedance/ByteTransformer",
    licence="Apache-2.0 (code); no weights published",
    tags=("attention", "language"),
    claims=(
        Claim(
            name="speed",
            statement="With lengths that average 0.6 of the maximum, BERT runs much faster without its padding.",
            metric="speed-up over the padded model",
            unit="x",
            better="higher",
            paper_value=1.87,
            paper_baseline=1.0,
            setting="BERT forward on an A100, lengths averaging 0.6 of the maximum, against PyTorch JIT",
            method="packed",
            baseline="Hugging Face BERT with SDPA",
            threshold=Threshold("ratio", 1.6),
            run="speed",
            plan="plan_speed",
        ),
        Claim(
            name="flop_bound",
            statement="The gain is most of what the saved arithmetic allows.",
            metric="speed-up as a share of the ratio of floating-point operations",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="the paper reports times, not shares of a bound",
            method="packed",
            baseline="the bound",
            threshold=Threshold("bound", 0.85),
            run="flop_bound",
            plan="plan_speed",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__, dict.fromkeys(("Packed", "convert", "pack", "revert", "unpack"), "method")
)
