"""On the Connection Between MPNN and Graph Transformer (arXiv 2301.11956)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

PAPER = Paper(
    slug="mpnn_gt",
    title="On the Connection Between MPNN and Graph Transformer",
    arxiv="2301.11956",
    published="2023-01-27",
    authors=4,
    organisation=None,
    summary=(
        "A message-passing network with one virtual node that sees all others can imitate the attention of a graph "
        "transformer, and the paper says at what width and depth. Here the constructions are modules with set weights, "
        "and the virtual node wraps any PyTorch Geometric convolution."
    ),
    code="https://github.com/Chen-Cai-OSU/MPNN-GT-Connection",
    licence="no licence file (code); no weights published",
    tags=("graph", "theory"),
    claims=(
        Claim(
            name="construction",
            statement=(
                "Two rounds of message passing with a virtual node of fixed width reproduce linear attention on any graph."
            ),
            metric="largest difference of outputs, float32",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="an exact statement; 100 random graphs of 2 to 200 nodes, linear transformer and Performer weights",
            method="virtual node against linear attention",
            baseline="linear attention against itself in float64",
            threshold=Threshold("bound", 1e-6),
            run="construction",
            plan="plan_construction",
        ),
        Claim(
            name="softmax_depth",
            statement=(
                "With one vector per node that singles it out, a virtual node of fixed width reproduces full softmax "
                "attention in 2n + 1 rounds, with an error below the stated bound at every sharpness."
            ),
            metric="largest error as a fraction of the stated bound",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="an approximation statement; error measured in float64, 1e-12 added to the bound for rounding",
            method="error of the deep construction",
            baseline="the stated bound",
            threshold=Threshold("bound", 1.0),
            run="softmax_depth",
            plan="plan_softmax_depth",
        ),
        Claim(
            name="climate",
            statement=(
                "On a lattice of an advected field whose area mean moves everywhere at once, a virtual node lowers the "
                "error of message passing at a long horizon."
            ),
            metric="test MSE 14 steps ahead",
            unit="variances of the local field",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "simulated 16 x 16 lattice, equal parameters, steps and search; the paper's own is sea-surface "
                "temperature, for which its code shows no gain one day ahead"
            ),
            method="message passing + virtual node",
            baseline="message passing",
            threshold=Threshold("relative", 0.10),
            run="climate",
            plan="plan_climate",
        ),
        Claim(
            name="long_range",
            statement=(
                "A virtual node lets message passing sum over a whole graph that is wider than its layers reach; what "
                "needs pairs of far nodes it does not solve, and attention does."
            ),
            metric="test MSE of the global sum",
            unit="variances",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="simulated rings, trees and two cliques joined by a path, 24 nodes, 3 layers, equal parameters",
            method="message passing + virtual node",
            baseline="message passing",
            threshold=Threshold("relative", 0.90),
            run="long_range",
            plan="plan_long_range",
        ),
        Claim(
            name="linear_time",
            statement=(
                "The time of a layer with a virtual node grows linearly with the number of nodes, that of full attention "
                "quadratically."
            ),
            metric="slope of log time over log nodes",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="lattices of 1,000 to 1,000,000 nodes, width 32, forward, one thread; full attention up to 8,000 nodes",
            method="message passing + virtual node",
            baseline="full attention",
            threshold=Threshold("bound", 1.15),
            run="linear_time",
            plan="plan_linear_time",
        ),
    ),
)

MODELS = {"virtual_node_network": "VirtualNodeNetwork"}

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DeepSetsVN": "model",
        "EquivariantLinear": "model",
        "FullAttention": "attention",
        "GPSLayer": "model",
        "GatedGCN": "model",
        "LinearAttention": "attention",
        "LinearAttentionAsVN": "constructions",
        "RandomFeatures": "attention",
        "VirtualNode": "model",
        "VirtualNodeNetwork": "model",
        "as_virtual_node": "constructions",
        "deep_sets_as_vn": "constructions",
        "encodings": "data",
        "linear_attention_as_relu_vn": "relu",
        "lrgb": "data",
        "ogb": "data",
        "separation": "constructions",
        "softmax_attention_as_vn": "constructions",
        "virtual_mlp": "model",
    },
)
