"""On Mesa-Optimization in Autoregressively Trained Transformers: Emergence and Capability (arXiv 2405.16845)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="mesa",
    title="On Mesa-Optimization in Autoregressively Trained Transformers: Emergence and Capability",
    arxiv="2405.16845",
    published="2024-05-27",
    authors=6,
    organisation=None,
    summary=(
        "Follows the training dynamics of one layer of linear attention on sequences that a hidden rotation generates, "
        "and says exactly when it ends as a learner that takes a gradient step in its context, and when it does not. "
        "Each case is checked by simulation here."
    ),
    code="https://github.com/ML-GSAI/MesaOpt-AR-Transformer",
    licence="MIT (code); no weights published",
    tags=("theory",),
    claims=(
        Claim(
            name="limit",
            statement=(
                "Where the first value meets a condition on its moments, training ends at the in-context gradient "
                "step whose size ab has a closed form in the moments and the length."
            ),
            metric="relative distance of the trained ab, worst of sparse, signs and uniform and of three starts",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="the paper's own: width 5, length 100, 10,000 sequences; an exact statement about the expected loss",
            method="from k1 / (k2 + k3 H)",
            baseline="from k1 / k2, the form for endless sequences",
            threshold=Threshold("bound", 0.005),
            run="limit",
            plan="plan",
        ),
        Claim(
            name="limit_gaussian",
            statement=(
                "For a Gaussian first value training ends at the closed form too, taken with the moments of the very "
                "sample it saw: the sixth is so heavy-tailed that 10,000 sequences miss the law's own by percents."
            ),
            metric="relative distance of the trained ab, worst of three starts",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="the paper's own: width 5, length 100, 10,000 sequences, drawn as 1/5 in the paper's figures",
            method="from the sample's moments",
            baseline="from 1/5, the line in the paper's figures",
            threshold=Threshold("bound", 0.01),
            run="limit_gaussian",
            plan="plan",
        ),
        Claim(
            name="conservation",
            statement="The gradient flow of the whole layer conserves a² - b², so each start ends at its own a and b.",
            metric="largest change on the way over largest a² + b², worst of three laws and three starts",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="the paper's own: width 5, length 100, 10,000 sequences; exact for the expected loss",
            method="a² - b²",
            baseline="a² + b²",
            threshold=Threshold("bound", 1e-3),
            run="conservation",
            plan="plan",
        ),
        Claim(
            name="recovery",
            statement=(
                "The trained learner forecasts the next token if every coordinate of the first value is 0, c or -c "
                "(sparse, signs), and cannot for a Gaussian one, of which it forecasts a fifth."
            ),
            metric="mean of forecast / truth at the last step",
            unit="",
            better="higher",
            paper_value=1.0,
            paper_baseline=0.2,
            setting="endless sequences; the lines 'MSE = 0' (sparse) and 'ratio = 1/5' (Gaussian) of the paper's figures",
            method="lower of sparse and signs",
            baseline="gaussian",
            threshold=Threshold("ratio", 4.0),
            run="recovery",
            plan="plan",
        ),
        Claim(
            name="beyond_condition",
            statement=(
                "Where the condition fails (every first value 1), training does not end at plain gradient descent: "
                "entries off the diagonal grow, far beyond what sampling leaves where it holds (signs)."
            ),
            metric="norm of the off-diagonal entries of the two blocks, mean of three starts",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="the paper's own: width 5, length 100, 10,000 sequences, shown as heat maps in the paper",
            method="ones",
            baseline="signs",
            threshold=Threshold("ratio", 20.0),
            run="beyond_condition",
            plan="plan",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "CausalLinearAttention": "model",
        "ExactMoment": "conditions",
        "LossForm": "training",
        "Moments": "conditions",
        "ar_sequences": "data",
        "exact_moment": "conditions",
        "flow": "theory",
        "gradient_step": "model",
        "least_squares": "model",
        "limit_product": "theory",
        "limit_weights": "theory",
        "moment_condition": "conditions",
        "moments": "conditions",
        "recovery_ratio": "model",
        "train": "training",
    },
)
