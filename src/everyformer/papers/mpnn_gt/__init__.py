"""On the Connection Between MPNN and Graph Transformer (arXiv 2301.11956)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="mpnn_gt",
    title="On the Connection Between MPNN and Graph Transformer",
    arxiv="2301.11956",
    published="2023-01-27",
    authors=4,
    organisation=None,
    summary=(
        "A message-passing network with one virtual node that sees all others can imitate the attention of a graph "
        "transformer, and the paper says at what width and depth. Here the constructions are weights you can load into "
        "PyTorch Geometric layers."
    ),
    code="https://github.com/Chen-Cai-OSU/MPNN-GT-Connection",
    licence="no licence file (code)",
    tags=(
        "graph",
        "theory",
    ),
    claims=(
        Claim(
            name="construction",
            statement="Layers with a virtual node reproduce linear attention on any graph.",
            metric="largest difference of outputs",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=0.0,
            setting="an exact statement",
            method="virtual node",
            baseline="linear attention",
        ),
    ),
)
