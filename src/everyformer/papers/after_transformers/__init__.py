"""What comes after transformers? -- A selective survey connecting ideas in deep learning (arXiv 2408.00386)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="after_transformers",
    title="What comes after transformers? -- A selective survey connecting ideas in deep learning",
    arxiv="2408.00386",
    published="2024-08-01",
    authors=1,
    organisation=None,
    summary=(
        "A survey of what stands beside attention and what may follow it: state-space models, modern recurrence, mixture "
        "of experts, other objectives, and the ideas that link them. Here its methods become token mixers with one "
        "signature that are measured against each other."
    ),
    code=None,
    licence="no code known",
    tags=("survey",),
    claims=(
        Claim(
            name="alternatives",
            statement=(
                "Mixers without attention match it on some tasks at a lower cost per token; here Mamba-2 comes within two "
                "points of full attention on ListOps and on bytes of plays. What a token costs is the next claim's."
            ),
            metric="accuracy lost to full attention, mean of two tasks",
            unit="points",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "a survey: figures of the works it cites, none verified; here small networks of equal parameters (as near "
                "as a feed-forward part allows), samples, steps and rates to choose from"
            ),
            method="Mamba-2",
            baseline="full attention",
            threshold=Threshold("bound", 2.0),
            run="alternatives",
            plan="plan_alternatives",
        ),
        Claim(
            name="constant_state",
            statement=(
                "Recurrent mixers write a token in the same time however many there are before it, where attention reads "
                "all of them: after 32 times the tokens, none of Mamba-2, RWKV-6 and RetNet takes more than 1.25 times as "
                "long. What each keeps in memory stands with the figures."
            ),
            metric="time of a token after 8,192 over that after 256",
            unit="x",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "no figure of the paper was verified; here single mixers of width 256, batch 2 (smoke: 1,024 tokens over "
                "64), the worst of three recurrent ones"
            ),
            method="worst of Mamba-2, RWKV-6, RetNet",
            baseline="full attention",
            threshold=Threshold("bound", 1.25),
            run="constant_state",
            plan="plan_constant_state",
        ),
        Claim(
            name="duality",
            statement=(
                "Attention without softmax, recurrent networks, state-space models and long convolutions are one thing "
                "under different gates: what each connection equates is equal to rounding."
            ),
            metric="largest difference of outputs, float64",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "exact statements, of random queries, keys, values and gates; the baseline is the same state-space model "
                "beside linear attention, whose gate is one"
            ),
            method="over all exact connections",
            baseline="gates left out",
            threshold=Threshold("bound", 1e-9),
            run="duality",
            plan="plan_duality",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Alternative": "method",
        "Connection": "links",
        "ForwardForward": "objectives",
        "connections": "links",
        "info_nce": "objectives",
        "table": "method",
    },
)
