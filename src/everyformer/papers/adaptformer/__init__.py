"""AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition (arXiv 2205.13535)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="adaptformer",
    title="AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition",
    arxiv="2205.13535",
    published="2022-05-26",
    authors=7,
    organisation=None,
    summary=(
        "Small bottleneck branches beside the frozen MLPs of a pretrained vision transformer are all that is trained, "
        "about one or two per cent of the weights. One backbone then serves many image and video tasks, each with a file "
        "of a few megabytes."
    ),
    code="https://github.com/ShoufaChen/AdaptFormer",
    licence="MIT (code)",
    tags=(
        "vision",
        "adapter",
    ),
    claims=(
        Claim(
            name="ssv2",
            statement="Tuning 1.5% of the parameters beats tuning all of them on a video task.",
            metric="relative gain over full fine-tuning",
            unit="%",
            better="higher",
            paper_value=10.0,
            paper_baseline=0.0,
            setting="Something-Something v2, 1.5% of parameters tuned",
            method="AdaptFormer",
            baseline="full fine-tuning",
        ),
        Claim(
            name="hmdb51",
            statement="The same holds, by more, on a small video data set.",
            metric="relative gain over full fine-tuning",
            unit="%",
            better="higher",
            paper_value=19.0,
            paper_baseline=0.0,
            setting="HMDB51, 1.5% of parameters tuned",
            method="AdaptFormer",
            baseline="full fine-tuning",
        ),
    ),
)
