"""Future Token Prediction -- Causal Language Modelling with Per-Token Semantic State Vector for Multi-Token Prediction (arXiv 2410.18160)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="ftp",
    title="Future Token Prediction -- Causal Language Modelling with Per-Token Semantic State Vector for Multi-Token Prediction",
    arxiv="2410.18160",
    published="2024-10-23",
    authors=1,
    organisation=None,
    summary=(
        "Instead of one logit vector per position, a language model gives a short sequence of vectors from which a small "
        "decoder writes the next several tokens. The state at each position then describes what is coming, not just the "
        "next word."
    ),
    code=None,
    licence="no code known",
    tags=("language",),
    claims=(
        Claim(
            name="smoothness",
            statement="States vary more smoothly along a text than those of a next-token model.",
            metric="cosine of neighbouring states",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="models of GPT-2 size; figures not verified",
            method="future token prediction",
            baseline="GPT",
        ),
    ),
)
