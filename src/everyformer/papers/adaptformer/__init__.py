"""AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition (arXiv 2205.13535)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

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
            statement=(
                "Tuning 1.5% of the parameters beats tuning all of them on a video task; here on a part of CIFAR-10: "
                "a small ViT is pretrained as a masked autoencoder on five classes and tuned on many pictures of the others."
            ),
            metric="relative gain over full fine-tuning",
            unit="%",
            better="higher",
            paper_value=10.0,
            paper_baseline=0.0,
            setting=(
                "Something-Something v2, ViT-B, 1.5% of parameters tuned; in the small ViT of the run here a bottleneck "
                "of 64 is as wide as the tokens, and more than a tenth of the parameters"
            ),
            method="AdaptFormer-64",
            baseline="full fine-tuning",
            threshold=Threshold("difference", 5.0),
            run="ssv2",
            plan="plan_ssv2",
        ),
        Claim(
            name="hmdb51",
            statement=(
                "The same holds, by more, on a small video data set; here the network is tuned on a few hundred pictures "
                "of a part of CIFAR-10."
            ),
            metric="relative gain over full fine-tuning",
            unit="%",
            better="higher",
            paper_value=19.0,
            paper_baseline=0.0,
            setting="HMDB51, ViT-B, 1.5% of parameters tuned; the run here is as for the claim ssv2",
            method="AdaptFormer-64",
            baseline="full fine-tuning",
            threshold=Threshold("difference", 5.0),
            run="hmdb51",
            plan="plan_hmdb51",
        ),
        Claim(
            name="prompts",
            statement=(
                "AdaptFormer beats trained prompts; here on a few hundred pictures of a part of CIFAR-10, "
                "with linear probing, LoRA, full fine-tuning and other bottlenecks beside them."
            ),
            metric="top-1 accuracy",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the paper's table was verified; the same epochs and learning rates to choose from for all",
            method="AdaptFormer-64",
            baseline="VPT",
            threshold=Threshold("difference", 1.0),
            run="prompts",
            plan="plan_prompts",
        ),
        Claim(
            name="start",
            statement="Before training, the adapted network gives the frozen network's outputs, bit for bit.",
            metric="largest difference of a logit from the frozen network's",
            unit="",
            better="lower",
            paper_value=0.0,
            paper_baseline=None,
            setting="every placement of the norm, beside and after the MLP, random weights; it follows from the zero start",
            method="AdaptFormer",
            baseline="VPT",
            threshold=Threshold("bound", 0.0),
            run="start",
            plan="plan_start",
        ),
        Claim(
            name="fraction",
            statement="About 1.5% of the parameters are trained.",
            metric="trained parameters",
            unit="% of full fine-tuning",
            better="lower",
            paper_value=1.5,
            paper_baseline=100.0,
            setting="ViT-B/16, bottleneck of 64, the head of 100 classes counted in; the full network at every scale",
            method="AdaptFormer-64",
            baseline="full fine-tuning",
            threshold=Threshold("bound", 1.5),
            run="fraction",
            plan="plan_fraction",
        ),
        Claim(
            name="memory",
            statement="A training step takes less memory than one of full fine-tuning; its time is measured beside it.",
            metric="memory of a step beside the weights",
            unit="MiB",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="the paper has no such figure; here AdamW on ViT-S/16 at 224 x 224 pixels, four pictures",
            method="AdaptFormer-64",
            baseline="full fine-tuning",
            threshold=Threshold("ratio", 1.2),
            run="memory",
            plan="plan_memory",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "AdaptMLP": "model",
        "AdaptFormerConfig": "tuner",
        "VPTConfig": "tuner",
    },
)
