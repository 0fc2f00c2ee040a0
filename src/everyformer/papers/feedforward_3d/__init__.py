"""Review of Feed-forward 3D Reconstruction: From DUSt3R to VGGT (arXiv 2507.08448)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="feedforward_3d",
    title="Review of Feed-forward 3D Reconstruction: From DUSt3R to VGGT",
    arxiv="2507.08448",
    published="2025-07-11",
    authors=7,
    organisation=None,
    summary=(
        "A review of networks that turn unposed photographs into cameras, depth and points in a single pass, from pairs "
        "(DUSt3R) to many views at once (VGGT). Here both families run in one readable skeleton on scenes with exact "
        "ground truth."
    ),
    code="https://github.com/naver/dust3r",
    licence="CC BY-NC-SA 4.0 (DUSt3R), VGGT licence (VGGT): both restrict commercial use",
    tags=(
        "3d",
        "spacetime",
        "survey",
    ),
    claims=(
        Claim(
            name="few_views",
            statement="With few views or little texture, one pass beats matching and triangulation.",
            metric="pose and depth error",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="a review: figures of the works it cites, none verified",
            method="feed-forward network",
            baseline="classic pipeline",
        ),
    ),
)
