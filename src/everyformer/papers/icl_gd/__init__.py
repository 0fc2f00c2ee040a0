"""Transformers learn in-context by gradient descent (arXiv 2212.07677)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

_SETTING = "10 points in 10 dimensions, x uniform in ±0.5, one layer, 5,000 steps with 2,048 fresh tasks (the authors')"

PAPER = Paper(
    slug="icl_gd",
    title="Transformers learn in-context by gradient descent",
    arxiv="2212.07677",
    published="2022-12-15",
    authors=7,
    organisation=None,
    summary=(
        "Shows that a layer of linear self-attention can carry out a step of gradient descent on the examples in its "
        "context, gives the weights that do it, and finds that trained layers do the same. All but the sine waves runs at "
        "the paper's own size on a CPU."
    ),
    code="https://github.com/google-research/self-organising-systems",
    licence="Apache-2.0 (code); no weights published",
    tags=("theory",),
    claims=(
        Claim(
            name="construction",
            statement="Linear self-attention with the weights given predicts what gradient descent predicts.",
            metric="largest error against gradient descent in float64",
            unit="of max(1, |prediction|)",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="generated sizes, starting weights, numbers of steps and stable step sizes; layers in float32",
            method="layers with set weights",
            baseline="gradient descent in float32",
            threshold=Threshold("bound", 1e-6),
            run="construction",
            plan="plan_construction",
        ),
        Claim(
            name="one_step",
            statement="A trained layer reaches the loss of one step of gradient descent.",
            metric="loss on new tasks",
            unit="of the gradient step's",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=f"{_SETTING}; the authors' notebooks give the gradient step a loss of 0.2047",
            method="trained layer",
            baseline="one gradient step",
            threshold=Threshold("bound", 1.01),
            run="one_step",
            plan="plan_one_layer",
        ),
        Claim(
            name="alignment",
            statement="A trained layer's prediction depends on the query as that of a gradient step does.",
            metric="cosine of the predictions' derivatives",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting=f"{_SETTING}; derivatives by the query's x, mean over 10,000 tasks",
            method="trained layer",
            baseline="layer before training",
            threshold=Threshold("bound", 0.99),
            run="aligned",
            plan="plan_one_layer",
        ),
        Claim(
            name="two_steps",
            statement="Two trained layers reach the loss of GD++: two gradient steps that also correct the curvature.",
            metric="loss on new tasks",
            unit="of GD++'s",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "10 points in 10 dimensions, two tied layers, 5,000 steps with 2,048 tasks; GD++ learned for 1,000 steps "
                "with 512 (the authors')"
            ),
            method="two trained layers",
            baseline="two plain gradient steps",
            threshold=Threshold("bound", 1.03),
            run="two_steps",
            plan="plan_two_layers",
        ),
        Claim(
            name="softmax_heads",
            statement="With softmax, two heads reach the loss of one step of gradient descent; a single head does not.",
            metric="loss on new tasks",
            unit="of the gradient step's",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=f"{_SETTING}, heads of width 11",
            method="two softmax heads",
            baseline="one softmax head",
            threshold=Threshold("bound", 1.01),
            run="softmax_heads",
            plan="plan_softmax",
        ),
        Claim(
            name="nonlinear",
            statement="With an MLP in front, one linear layer learns sine waves in context that a linear learner cannot.",
            metric="loss on new waves",
            unit="half MSE",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "sine waves from 10 points; here 8,000 steps with 128 tasks for both trained models, where the authors "
                "train 20,000 with 2,048"
            ),
            method="MLP and linear attention",
            baseline="ridge regression in context",
            threshold=Threshold("ratio", 10.0),
            run="nonlinear",
            plan="plan_nonlinear",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "InContextTransformer": "model",
        "LearnedGDPlusPlus": "construct",
        "Lift": "model",
        "LinearSelfAttention": "model",
        "TokenMLP": "model",
        "alignment": "compare",
        "best_rate": "construct",
        "copying": "compare",
        "gd_weights": "construct",
        "gdpp_weights": "construct",
        "gradient_descent": "construct",
        "interpolate": "compare",
        "iterated": "compare",
        "kernel_descent": "construct",
        "normalised": "compare",
        "optimal_rate": "construct",
        "regression_tasks": "data",
        "regression_tokens": "data",
        "sensitivity": "compare",
        "sine_tasks": "data",
        "token_sequence": "data",
    },
)
