"""DiTraj: training-free trajectory control for video diffusion transformer (arXiv 2509.21839)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

_HERE = (
    "; here a small video DiT trained once on videos of 16 x 16 pixels in which one of forty digits moves by whole "
    "patches; each seed has its own held-out trajectories, digits and noise; a digit's place is its centre of brightness, "
    "in videos enlarged to 32 x 32 pixels"
)

PAPER = Paper(
    slug="ditraj",
    title="DiTraj: training-free trajectory control for video diffusion transformer",
    arxiv="2509.21839",
    published="2025-09-25",
    authors=9,
    organisation=None,
    summary=(
        "Boxes drawn over a few frames steer where a video diffusion transformer places its subject, without training. "
        "Prompts are split into foreground and background, and the positions of foreground tokens are taken relative to "
        "their box."
    ),
    code="https://github.com/HaofeiDing/DiTraj",
    licence="non-commercial (code)",
    tags=(
        "diffusion",
        "video",
    ),
    claims=(
        Claim(
            name="control",
            statement="Objects follow the boxes better than with earlier training-free methods.",
            metric="mean overlap with the given boxes",
            unit="mIoU",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="Wan2.1 and CogVideoX against FreeTraj, PEEKABOO and TrailBlazer; figures not verified" + _HERE,
            method="DiTraj",
            baseline="the best of no control, prompts only, self-attention mask only, and both (as PEEKABOO masks)",
            threshold=Threshold("difference", 0.05),
            run="control",
            plan="plan_control",
        ),
        Claim(
            name="distance",
            statement="With control the subject is near where it should be.",
            metric="distance between the centres of subject and box",
            unit="pixels",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="the paper measures the distance of centroids on Wan2.1 and CogVideoX; figures not verified"
            + _HERE,
            method="DiTraj",
            baseline="no control",
            threshold=Threshold("relative", 0.5),
            run="distance",
            plan="plan_distance",
        ),
        Claim(
            name="quality",
            statement="Control does not spoil what is drawn.",
            metric="share of the frames recognised by a classifier that control loses",
            unit="%",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="the paper scores videos of Wan2.1 and CogVideoX; figures not verified"
            + _HERE
            + "; the classifier sees 16 x 16 pixels around that place",
            method="DiTraj",
            baseline="no control",
            threshold=Threshold("bound", 10.0),
            run="quality",
            plan="plan_quality",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Trajectory": "boxes",
        "TrajectoryControl": "control",
        "cross_mask": "method",
        "picture": "boxes",
        "self_mask": "method",
        "separate": "prompts",
        "std_rope": "method",
    },
)
