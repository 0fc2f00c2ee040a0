"""Review of Feed-forward 3D Reconstruction: From DUSt3R to VGGT (arXiv 2507.08448)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

_HERE = (
    "; here rendered rooms of 64 x 64 pixels, views 10 to 40 degrees apart, two small models trained from nothing for the "
    "same time, four to five minutes on one core"
)

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
            statement=(
                "With few views or little texture, one pass beats matching and triangulation; here the relative pose of "
                "two views of rooms in plain colours."
            ),
            metric="pose AUC@30",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="a review: figures of the works it cites, none verified" + _HERE,
            method="all views in one pass",
            baseline="SIFT and essential matrix",
            threshold=Threshold("difference", 0.1),
            run="few_views",
            plan="plan",
        ),
        Claim(
            name="pointmap",
            statement=(
                "A pointmap of two views without texture is closer to the scene than the classic pipeline's points are, "
                "where every pixel takes the depth of the nearest one."
            ),
            metric="median error of points",
            unit="%",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the review was verified; after the scale is made right" + _HERE,
            method="pair model",
            baseline="SIFT and triangulation",
            threshold=Threshold("ratio", 1.2),
            run="pointmap",
            plan="plan",
        ),
        Claim(
            name="confidence",
            statement="The confidence that comes with a pointmap ranks the errors of its points.",
            metric="rank correlation with the error",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the review was verified; Spearman's, inside a scene" + _HERE,
            method="confidence of the pair model",
            baseline="chance",
            threshold=Threshold("bound", -0.2),
            run="confidence",
            plan="plan",
        ),
        Claim(
            name="views",
            statement="More views in the same pass make the points of each view better.",
            metric="median error of points",
            unit="%",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the review was verified; the same two views, alone and among eight" + _HERE,
            method="eight views",
            baseline="two views",
            threshold=Threshold("ratio", 1.05),
            run="views",
            plan="plan",
        ),
        Claim(
            name="one_pass",
            statement="One pass over all views takes a small part of the time of all pairs and their global alignment.",
            metric="time of a scene of eight views",
            unit="s",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the review was verified; 56 ordered pairs and 300 steps of descent" + _HERE,
            method="all views in one pass",
            baseline="pairs and alignment",
            threshold=Threshold("ratio", 10.0),
            run="one_pass",
            plan="plan",
        ),
        Claim(
            name="families",
            statement=(
                "Models that see all views at once find better cameras than pairs put together by alignment, trained for "
                "the same time."
            ),
            metric="pose AUC@30",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="VGGT's own comparison, whose figures were not verified; four views" + _HERE,
            method="all views in one pass",
            baseline="pairs and alignment",
            threshold=Threshold("difference", 0.05),
            run="families",
            plan="plan",
        ),
    ),
)

MODELS = {
    "dust3r_linear": "dust3r_linear",
    "dust3r_512_dpt": "dust3r_512_dpt",
    "vggt_1b": "vggt_1b",
    "feedforward_3d_pair_tiny": "pair_tiny",
    "feedforward_3d_multi_tiny": "multi_tiny",
}

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "PairModel": "model",
        "MultiViewModel": "model",
        "Pointmap": "model",
        "Reconstruction": "model",
        "dust3r_linear": "model",
        "dust3r_512_dpt": "model",
        "vggt_1b": "model",
        "pair_tiny": "model",
        "multi_tiny": "model",
        "pair_loss": "losses",
        "multiview_loss": "losses",
        "focal_from_pointmap": "focal",
        "pose_encode": "cameras",
        "pose_decode": "cameras",
        "unproject": "cameras",
        "procrustes": "geometry",
        "pnp": "geometry",
        "pose_auc": "geometry",
        "Pairs": "alignment",
        "global_alignment": "alignment",
        "write_ply": "export",
        "picture": "export",
        "load_file": "checkpoint",
    },
)
