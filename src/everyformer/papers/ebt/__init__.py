"""Energy-Based Transformers are Scalable Learners and Thinkers (arXiv 2507.02092)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="ebt",
    title="Energy-Based Transformers are Scalable Learners and Thinkers",
    arxiv="2507.02092",
    published=None,
    authors=None,
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
            statement="Loss falls faster with data, batch, parameters and depth than for a standard recipe.",
            metric="advantage in scaling rate over Transformer++",
            unit="%",
            better="higher",
            paper_value=35.0,
            paper_baseline=0.0,
            setting="language pretraining, the largest of the reported advantages",
            method="energy-based transformer",
            baseline="Transformer++",
        ),
        Claim(
            name="thinking",
            statement="Extra computation at inference helps it more than it helps a transformer.",
            metric="advantage of the gain from thinking longer",
            unit="%",
            better="higher",
            paper_value=29.0,
            paper_baseline=0.0,
            setting="language tasks",
            method="energy-based transformer",
            baseline="Transformer++",
        ),
    ),
)
