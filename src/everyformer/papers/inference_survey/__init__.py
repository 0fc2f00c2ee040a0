"""A Survey of Techniques for Optimizing Transformer Inference (arXiv 2307.07982)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="inference_survey",
    title="A Survey of Techniques for Optimizing Transformer Inference",
    arxiv="2307.07982",
    published="2023-07-16",
    authors=5,
    organisation=None,
    summary=(
        "A survey of how transformers are made cheaper to run: distillation, pruning, quantisation, light architectures, "
        "and what the hardware adds. Here its methods become compressors that compose, with size, memory, latency and "
        "quality before and after."
    ),
    code=None,
    licence="no code known",
    tags=(
        "survey",
        "precision",
    ),
    claims=(
        Claim(
            name="compression",
            statement=(
                "Compression methods trade size for quality along a curve that can be measured; at a quarter of the size a "
                "compressed model is better than a small one trained as long."
            ),
            metric="quality kept at a given size",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "a survey: no figure of its own; here the next bytes of plays that a LLaMA of bytes names, the method of "
                "fourteen that is best on other plays at a quarter of the file; the small one's rate is the best of two there; "
                "all of them, and a ViT on digits, as extras"
            ),
            method="compressed",
            baseline="trained small",
            threshold=Threshold("difference", 2.0),
            run="compression",
            plan="plan",
        ),
        Claim(
            name="sparsity_speed",
            statement=(
                "Zeros among the weights bring no speed to ordinary matrix products; as many weights taken out as whole "
                "heads and blocks do."
            ),
            metric="speed-up with a third of the weights gone",
            unit="x",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="a survey: no figure of its own; here a LLaMA of 8 blocks of 256, passes timed alternately",
            method="heads and blocks out",
            baseline="zeros",
            threshold=Threshold("ratio", 1.3),
            run="sparsity_speed",
            plan="plan",
        ),
        Claim(
            name="merging",
            statement="Tokens that are alike can be merged as they go, without training: faster for a point of accuracy.",
            metric="pictures a second for a point of accuracy",
            unit="1/s",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "a survey: no figure of its own; here a ViT of 6 blocks on digits of 100 patches, as many pairs as lose at "
                "most a point on digits to choose by; accuracy on others, and of pairs drawn blindly, as extras"
            ),
            method="tokens merged",
            baseline="all tokens",
            threshold=Threshold("ratio", 1.2),
            run="merging",
            plan="plan",
        ),
        Claim(
            name="distillation",
            statement="A small model learns more from a large one's answers beside the labels than from the labels alone.",
            metric="accuracy of the small model",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "a survey: no figure of its own; here a ViT of 2 blocks on 1,000 digits, equal steps, rates of equal choice; "
                "the teacher was trained on 8,000"
            ),
            method="labels and teacher",
            baseline="labels alone",
            threshold=Threshold("difference", 0.5),
            run="distillation_gain",
            plan="plan",
        ),
        Claim(
            name="composed",
            statement="Methods add up: eight bits after pruning lose about what each of both loses alone.",
            metric="quality lost beyond the sum of the parts",
            unit="points",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "a survey: no figure of its own; here a LLaMA of bytes, half of its weights zero, without training after; "
                "other pairs as extras"
            ),
            method="int8 after pruning",
            baseline="sum of the parts",
            threshold=Threshold("bound", 1.0),
            run="composed",
            plan="plan",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    dict.fromkeys(("SCHEMES", "Point", "Scheme", "best_within", "compressed", "curve", "frontier"), "method"),
)
