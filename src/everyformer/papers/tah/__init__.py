"""Think-at-Hard: Selective Latent Iterations to Improve Reasoning Language Models (arXiv 2511.08577)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

HERE = (
    "; the run here tunes a four-layer Qwen3 of 170 thousand parameters on walks of up to three steps on rings, and "
    "counts texts of ten answers that are all right"
)

PAPER = Paper(
    slug="tah",
    title="Think-at-Hard: Selective Latent Iterations to Improve Reasoning Language Models",
    arxiv="2511.08577",
    published=None,
    authors=6,
    organisation=None,
    summary=(
        "A language model that reads a token a second time only where a small decider finds it hard. Most tokens pass "
        "once, the hard ones get deeper, and low-rank weights are used for the second pass alone."
    ),
    code="https://github.com/thu-nics/TaH",
    licence="Apache-2.0 (code)",
    tags=("language",),
    claims=(
        Claim(
            name="selective",
            statement="Iterating on few tokens beats iterating on all; tuned alike, with the same parameters.",
            metric="gain in accuracy",
            unit="points",
            better="higher",
            paper_value=8.1,
            paper_baseline=0.0,
            setting="Qwen3 at equal parameters, five reasoning benchmarks, the lower end of 8.1 to 11.3" + HERE,
            method="second pass where the decider finds it hard",
            baseline="second pass on every token",
            threshold=Threshold("difference", 4.0),
            run="selective",
            plan="plan_selective",
        ),
        Claim(
            name="single",
            statement="It also beats a single pass tuned on the same data, which has a layer more for the same parameters.",
            metric="gain in accuracy",
            unit="points",
            better="higher",
            paper_value=4.0,
            paper_baseline=0.0,
            setting="Qwen3 at equal parameters, five reasoning benchmarks, the lower end of 4.0 to 5.0" + HERE,
            method="selective second pass",
            baseline="one pass",
            threshold=Threshold("difference", 2.0),
            run="single",
            plan="plan_single",
        ),
        Claim(
            name="overthinking",
            statement="A second pass forced on every token spoils answers that were right; the decider leaves them alone.",
            metric="answers right after the first pass that end up wrong",
            unit="%",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the paper was verified; the same weights under both policies" + HERE,
            method="second pass where the decider finds it hard",
            baseline="second pass forced on every token",
            threshold=Threshold("difference", 1.0),
            run="overthinking",
            plan="plan_overthinking",
        ),
        Claim(
            name="exact",
            statement=(
                "Read token by token, as in generation, with keys and values kept for each depth, a text gives the logits "
                "that one parallel pass for each depth gives."
            ),
            metric="largest difference of a logit from that of the parallel passes",
            unit="",
            better="lower",
            paper_value=0.0,
            paper_baseline=None,
            setting="follows from attention that is causal in position and in depth" + HERE,
            method="keys of every depth kept",
            baseline="keys of the first pass kept",
            threshold=Threshold("bound", 1e-3),
            run="exact",
            plan="plan_exact",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "wrap": "model",
        "TaHConfig": "config",
        "TaHForCausalLM": "model",
        "TaHOutput": "model",
        "Memory": "attention",
        "hard_tokens": "training",
        "decider_loss": "training",
        "freeze": "training",
        "prune": "training",
        "least_needed": "training",
    },
)
