"""DiTraj: training-free trajectory control for video diffusion transformer (arXiv 2509.21839)."""

from everyformer.catalog import Claim, Paper

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
            setting="Wan2.1 and CogVideoX against FreeTraj, PEEKABOO and TrailBlazer; figures not verified",
            method="DiTraj",
            baseline="the best earlier method",
        ),
    ),
)
