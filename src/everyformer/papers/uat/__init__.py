"""Universal Approximation Theorem for a Single-Layer Transformer (arXiv 2507.10581)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="uat",
    title="Universal Approximation Theorem for a Single-Layer Transformer",
    arxiv="2507.10581",
    published="2025-07-11",
    authors=1,
    organisation="University of Sana'a",
    summary=(
        "One layer of attention with one feed-forward network can approximate any continuous map from sequences to "
        "sequences. Here that is a program: it builds the weights for a map and a precision that you name, and certifies "
        "or measures the error."
    ),
    code=None,
    licence="no code known",
    tags=("theory",),
    claims=(
        Claim(
            name="precision",
            statement="The constructed transformer stays within the precision asked for, for every map of the family.",
            metric="largest error over the precision asked for",
            unit="",
            better="lower",
            paper_value=1.0,
            paper_baseline=None,
            setting=(
                "any continuous map on a compact domain; a theorem, so the ratio is at most 1; here seven maps, 2 x 1, "
                "1 x 2 and 3 x 1 numbers, precision .3, .1 and .03, errors on a grid, random points and after ascent; "
                "a refusal counts as 10"
            ),
            method="constructed transformer",
            baseline="the bound",
            threshold=Threshold("bound", 1.0),
            run="precision",
            plan="plan",
        ),
        Claim(
            name="width",
            statement="The width grows no faster with the precision than Lipschitz maps need in the worst case, eps^-D.",
            metric="largest slope of log width over log 1/eps, per input dimension",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="the family of the precision claim, slope over precision .3, .1 and .03; the paper gives no rate",
            method="width used (solved)",
            baseline="width that the bound asks for",
            threshold=Threshold("bound", 1.0),
            run="width",
            plan="plan",
        ),
        Claim(
            name="trained",
            statement="At equal width, the construction has a smaller largest error than the same layer trained by Adam.",
            metric="largest error, mean over maps",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "not in the paper; seven maps of 2 and of 3 tokens at the width built for precision .03; Adam gets two "
                "learning rates and 1,000 steps of 256 new points each, more time than the construction takes"
            ),
            method="constructed",
            baseline="trained, best of two learning rates",
            threshold=Threshold("ratio", 1.5),
            run="trained",
            plan="plan",
        ),
        Claim(
            name="positions",
            statement="Without positions, the error on a map that is not equivariant stays above half of its asymmetry.",
            metric="smallest error over half the asymmetry",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="a consequence of equivariance, not a figure of the paper; the maps of the family that are not equivariant, 2 and 3 tokens",
            method="without positions",
            baseline="with positions (largest), precision .1",
            threshold=Threshold("bound", 1.0),
            run="positions",
            plan="plan",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Certificate": "model",
        "UniversalTransformer": "model",
        "TooLarge": "ridge",
        "asymmetry": "target",
        "construct": "construction",
        "sup_error": "error",
        "widths": "construction",
        "HardPartition": "contrast",
        "hard_partition": "contrast",
        "untrained": "contrast",
        "Map": "maps",
        "family": "maps",
    },
)
