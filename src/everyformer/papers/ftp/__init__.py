"""Future Token Prediction -- Causal Language Modelling with Per-Token Semantic State Vector for Multi-Token Prediction (arXiv 2410.18160)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

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
            setting=(
                "models of GPT-2 size, figures not verified; here small models of equal parameters on plays, the GPT "
                "trained until its next-token loss is as low; both losses, and a GPT with as many steps, as extras"
            ),
            method="future token prediction",
            baseline="GPT",
            threshold=Threshold("difference", 0.1),
            run="smoothness",
            plan="plan_smoothness",
        ),
        Claim(
            name="topic",
            statement=(
                "At equal next-token loss, states tell more of the topic of a text; here a linear probe of their mean over "
                "a passage says from which tenth of the plays it is."
            ),
            metric="accuracy of a linear probe",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "the paper classifies texts with models of GPT-2 size, figures not verified; here passages of "
                "tiny_shakespeare that the probe was not fitted to; a tenth is about as long as a play"
            ),
            method="future token prediction",
            baseline="GPT",
            threshold=Threshold("difference", 2.0),
            run="topic",
            plan="plan_topic",
        ),
        Claim(
            name="code",
            statement=(
                "On a toy code task the answers are right far more often; here definitions in any order have to be "
                "written in an order in which they can be run."
            ),
            metric="answers right as a whole",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "the paper has a toy task of its own, figures not verified; here two chains of copied variables, equal "
                "parameters, programs, steps and rates, written one token at a time"
            ),
            method="future token prediction",
            baseline="GPT",
            threshold=Threshold("difference", 10.0),
            run="code",
            plan="plan_code",
        ),
        Claim(
            name="speculative",
            statement=(
                "The decoder's drafts, checked so that the distribution stays that of single tokens, write more tokens "
                "with each pass of the encoder."
            ),
            metric="tokens per pass of the encoder",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="not in the paper, which draws drafts unchecked; temperature 1, 64 tokens after prompts from unseen plays",
            method="checked drafts of 8",
            baseline="one token at a time",
            threshold=Threshold("ratio", 1.5),
            run="speculative",
            plan="plan_speculative",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "FutureTokenPredictor": "model",
        "Speculation": "model",
        "future_loss": "model",
        "sampled_positions": "model",
    },
)
