"""Diffscaler: Enhancing the Generative Prowess of Diffusion Transformers (arXiv 2404.09976)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

_HERE = (
    "; here a small DiT pretrained on the digits 0 to 4 learns to draw 5 to 9: Fréchet distance to held-out digits in the "
    "features of a classifier trained here, one pretrained network for all seeds, equal steps for all methods and each "
    "with its best of four learning rates on held-out training digits"
)

PAPER = Paper(
    slug="diffscaler",
    title="Diffscaler: Enhancing the Generative Prowess of Diffusion Transformers",
    arxiv="2404.09976",
    published="2024-04-15",
    authors=3,
    organisation=None,
    summary=(
        "One pretrained diffusion transformer learns a new data set through scales, shifts and low-rank additions at "
        "each of its layers, with everything else frozen. A single model so covers several image domains at a small cost "
        "for each."
    ),
    code=None,
    licence="no code known",
    tags=(
        "diffusion",
        "adapter",
    ),
    claims=(
        Claim(
            name="one_model",
            statement="A few task parameters per data set come close to fine-tuning the whole model.",
            metric="Fréchet distance as a multiple of full fine-tuning's",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="FFHQ, Flowers, CUB and others, measured by FID; no single figure verified" + _HERE,
            method="Diffscaler",
            baseline="full fine-tuning",
            threshold=Threshold("bound", 1.25),
            run="one_model",
            plan="plan_one_model",
        ),
        Claim(
            name="lora",
            statement="At no more parameters than LoRA has, Diffscaler draws a new data set better.",
            metric="Fréchet distance",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "no figure of the paper was verified; LoRA is at every linear layer and has the lowest rank at which it "
                "trains as many parameters" + _HERE
            ),
            method="Diffscaler",
            baseline="LoRA",
            threshold=Threshold("relative", 0.05),
            run="lora",
            plan="plan_lora",
        ),
        Claim(
            name="bitfit",
            statement="Diffscaler draws a new data set better than a network whose biases alone are trained.",
            metric="Fréchet distance",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the paper was verified; trained biases are fewer parameters" + _HERE,
            method="Diffscaler",
            baseline="BitFit",
            threshold=Threshold("relative", 0.05),
            run="bitfit",
            plan="plan_bitfit",
        ),
        Claim(
            name="fraction",
            statement="A data set costs about a hundredth of the model's parameters or less.",
            metric="trained parameters",
            unit="% of full fine-tuning",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the paper was verified; DiT-XL/2 with a data set of ten classes and rank 4, at every scale",
            method="Diffscaler",
            baseline="full fine-tuning",
            threshold=Threshold("bound", 1.0),
            run="fraction",
            plan="plan_fraction",
        ),
        Claim(
            name="together",
            statement="One model serves several tasks in one batch, with the outputs that each task has on its own.",
            metric="largest difference from the tasks on their own, of the largest output",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="four tasks of ranks 1 to 8, random weights; it follows from the parameters being independent",
            method="a batch of four tasks",
            baseline="the first task's parameters for all rows",
            threshold=Threshold("bound", 1e-5),
            run="together",
            plan="plan_together",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Affiner": "method",
        "DiffScalerConfig": "tuner",
        "tasks": "tuner",
    },
)
