"""A Practical Survey on Faster and Lighter Transformers (arXiv 2103.14636)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="faster_lighter",
    title="A Practical Survey on Faster and Lighter Transformers",
    arxiv="2103.14636",
    published="2021-03-26",
    authors=3,
    organisation=None,
    summary=(
        "A guide to the many ways of making transformers cheaper, sorted by what limits you: computation, memory or "
        "capacity. Here it becomes a table of mixers and training methods measured on your machine."
    ),
    code=None,
    licence="no code known",
    tags=(
        "survey",
        "attention",
    ),
    claims=(
        Claim(
            name="crossover",
            statement="Methods of lower complexity pay off beyond some length of sequence: half of them by 4,096 tokens.",
            metric="length from which a method beats full attention",
            unit="tokens",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "a survey: no figure of its own; here the median over the mixers of this library that grow slower than n², a "
                "forward pass beside full attention by SDPA on the same tokens; one that is never faster counts as twice "
                "the longest length"
            ),
            method="median of the cheaper mixers",
            baseline="the longest length measured",
            threshold=Threshold("bound", 4096.0),
            run="crossover",
            plan="plan_crossover",
        ),
        Claim(
            name="short",
            statement="At short lengths full attention is the faster one: the constants of the cheaper methods are larger.",
            metric="time of a forward pass over 128 tokens",
            unit="ms",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="a survey: no figure of its own; here against the median of the same mixers, in the same run",
            method="full attention",
            baseline="median of the cheaper mixers",
            threshold=Threshold("ratio", 1.5),
            run="short",
            plan="plan_crossover",
        ),
        Claim(
            name="reversible",
            statement="Reversible blocks keep no activations of earlier layers, so that memory does not grow with depth.",
            metric="peak memory of a training step of 12 blocks",
            unit="MB",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "a survey: no figure of its own; here the same weights and the same sums, trained once with what autograd "
                "keeps and once by recomputation; differences of the gradients are extras"
            ),
            method="reversible",
            baseline="autograd",
            threshold=Threshold("ratio", 4.0),
            run="reversible",
            plan="plan_reversible",
        ),
        Claim(
            name="retrieval",
            statement="What is saved is paid for in capacity: cheaper mixers recall less of what they read.",
            metric="associative recall",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "a survey: no figure of its own; here eight pairs in 64 tokens (chance 6%), networks of two layers of width 64, "
                "equal parameters, 1,000 steps of the same 16 samples, and the better of two rates for each of linear "
                "attention, Performer, retention, Mamba-2 and a window of 16"
            ),
            method="full attention",
            baseline="median of the cheaper mixers",
            threshold=Threshold("difference", 10.0),
            run="retrieval",
            plan="plan_retrieval",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    dict.fromkeys(("Reversible", "ReversibleSequence", "backward_in_parts", "checkpoint_layers", "share"), "method"),
)
