"""Think-at-Hard: Selective Latent Iterations to Improve Reasoning Language Models (arXiv 2511.08577)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="tah",
    title="Think-at-Hard: Selective Latent Iterations to Improve Reasoning Language Models",
    arxiv="2511.08577",
    published=None,
    authors=None,
    organisation=None,
    summary=(
        "A language model that reads a token a second time only where a small decider finds it hard. Most tokens pass "
        "once, the hard ones get deeper, and low-rank weights are used for the second pass alone."
    ),
    code="https://github.com/thu-nics/TaH",
    licence="none verified (code)",
    tags=("language",),
    claims=(
        Claim(
            name="selective",
            statement="Iterating on few tokens beats iterating on all.",
            metric="gain in accuracy",
            unit="points",
            better="higher",
            paper_value=8.1,
            paper_baseline=0.0,
            setting="Qwen3 at equal parameters, five reasoning benchmarks, the lower end of 8.1 to 11.3",
            method="second pass on 6% of tokens",
            baseline="second pass on every token",
        ),
        Claim(
            name="single",
            statement="It also beats a single pass tuned on the same data.",
            metric="gain in accuracy",
            unit="points",
            better="higher",
            paper_value=4.0,
            paper_baseline=0.0,
            setting="Qwen3 at equal parameters, five reasoning benchmarks, the lower end of 4.0 to 5.0",
            method="selective second pass",
            baseline="one pass",
        ),
    ),
)
