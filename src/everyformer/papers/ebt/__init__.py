"""Energy-Based Transformers are Scalable Learners and Thinkers (arXiv 2507.02092)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="ebt",
    title="Energy-Based Transformers are Scalable Learners and Thinkers",
    arxiv="2507.02092",
    published="2025-07-02",
    authors=10,
    organisation=None,
    summary=(
        "A transformer that scores how well an input and a candidate answer fit, and predicts by descending that score. "
        "More descent steps are more thinking, so one model trades time for accuracy on text and on images."
    ),
    code="https://github.com/alexiglad/EBT",
    licence="Apache-2.0 (code)",
    tags=(
        "language",
        "theory",
    ),
    claims=(
        Claim(
            name="scaling",
            statement=(
                "Loss falls faster with data, batch, parameters and depth than for a standard recipe; run here with data, "
                "over three sizes and three budgets on the characters of Shakespeare's plays."
            ),
            metric="advantage in scaling rate over Transformer++",
            unit="%",
            better="higher",
            paper_value=35.0,
            paper_baseline=0.0,
            setting="language pretraining, the largest of the reported advantages",
            method="energy-based transformer",
            baseline="Transformer++",
            threshold=Threshold("difference", 10.0),
            run="scaling",
            plan="plan_scaling",
        ),
        Claim(
            name="thinking",
            statement=(
                "Extra computation at inference helps it more than it helps a transformer; run here as the fall of "
                "perplexity from one step to six, which is nothing by construction where there are no steps."
            ),
            metric="advantage of the gain from thinking longer",
            unit="%",
            better="higher",
            paper_value=29.0,
            paper_baseline=0.0,
            setting="language tasks",
            method="energy-based transformer",
            baseline="Transformer++",
            threshold=Threshold("difference", 10.0),
            run="thinking",
            plan="plan_thinking",
        ),
        Claim(
            name="uncertainty",
            statement=(
                "Energies say where a prediction is uncertain; run here as telling pieces of Wikipedia articles from "
                "pieces of the plays that a small model was trained on."
            ),
            metric="area under the ROC curve",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="energies of the tokens of sentences, which the paper shows without a figure of merit",
            method="energy of the prediction",
            baseline="entropy of Transformer++",
            threshold=Threshold("difference", 0.02),
            run="uncertainty",
            plan="plan_uncertainty",
        ),
        Claim(
            name="denoising",
            statement=(
                "It denoises images better than a diffusion transformer, with far fewer passes; run here on digits, "
                "each after the number of passes that is best for it."
            ),
            metric="PSNR",
            unit="dB",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="denoising of COCO pictures at 128 x 128 beside a DiT of equal size; figures not verified",
            method="bidirectional energy-based transformer",
            baseline="DiT",
            threshold=Threshold("difference", 0.5),
            run="denoising",
            plan="plan_denoising",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "EBT": "model",
        "ImageEBT": "images",
        "Recipe": "descent",
        "ReplayBuffer": "descent",
        "S1": "descent",
        "S2": "descent",
        "parameter_groups": "descent",
    },
)
