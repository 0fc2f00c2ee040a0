import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch_geometric.nn import GATConv, GCNConv, GINEConv, SAGEConv, TransformerConv

from everyformer.papers.mpnn_gt import (
    DeepSetsVN,
    FullAttention,
    GatedGCN,
    GPSLayer,
    LinearAttention,
    LinearAttentionAsVN,
    RandomFeatures,
    VirtualNode,
    VirtualNodeNetwork,
    virtual_mlp,
)

# Sizes of the graphs of a batch: a single node, several graphs, one graph.
sizes = st.lists(st.integers(1, 12), min_size=1, max_size=4)


def random_batch(sizes, dim, seed=0, dtype=torch.float32, density=2):
    """Nodes, edges inside each graph (none at density 0), the batch vector."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), dim, generator=draw, dtype=dtype)
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.long))
    edges = [torch.zeros(2, 0, dtype=torch.long)]
    for start, size in zip([sum(sizes[:i]) for i in range(len(sizes))], sizes, strict=True):
        edges.append(start + torch.randint(size, (2, density * size), generator=draw))
    return x, torch.cat(edges, 1), batch


CONVS = {
    "gcn": (lambda d: GCNConv(d, d), False),
    "sage": (lambda d: SAGEConv(d, d), False),
    "gine": (lambda d: GINEConv(nn.Linear(d, d)), True),
    "gat": (lambda d: GATConv(d, d, edge_dim=d), True),
    "transformer": (lambda d: TransformerConv(d, d, edge_dim=d), True),
    "gatedgcn": (GatedGCN, True),
}
GRAPHS = [5, 1, 4]


def graph(dim, attr=True, sizes=GRAPHS):
    x, edges, batch = random_batch(sizes, dim)
    return x, edges, torch.randn(edges.shape[1], dim) if attr else None, batch


def nodes_of(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("pool", ["after", "before"])
@pytest.mark.parametrize("aggregate", ["sum", "mean", "softmax", "max"])
@pytest.mark.parametrize("conv", CONVS)
def test_the_wrapper_computes_its_equation_graph_by_graph(conv, aggregate, pool):
    build, attr = CONVS[conv]
    layer = VirtualNode(build(6), 6, aggregate=aggregate, pool=pool).eval()
    x, edges, edge_attr, batch = graph(6, attr)
    out = nodes_of(layer(x, edges, edge_attr, batch))
    given = (x, edges) if edge_attr is None else (x, edges, edge_attr)
    hidden = nodes_of(layer.conv(*given))
    source = x if pool == "before" else hidden
    for g in range(len(GRAPHS)):
        own = source[batch == g]
        if aggregate == "softmax":
            pooled = (layer.score(own).softmax(0) * own).sum(0)
        else:
            pooled = own.max(0).values if aggregate == "max" else getattr(own, aggregate)(0)
        torch.testing.assert_close(
            out[batch == g], hidden[batch == g] + layer.update(pooled[None]), atol=1e-5, rtol=1e-4
        )


def test_the_state_goes_from_layer_to_layer_and_the_residual_keeps_it():
    x, edges, _, batch = graph(6, attr=False)
    state = torch.randn(3, 6)
    for residual in (False, True):
        layer = VirtualNode(GCNConv(6, 6), 6, residual=residual)
        _, _, new = layer.step(x, state, edges, None, batch)
        hidden = layer.conv(x, edges)
        pooled = torch.zeros(3, 6).index_add(0, batch, hidden) + state
        expected = layer.update(pooled) + state if residual else layer.update(pooled)
        torch.testing.assert_close(new, expected)


@pytest.mark.parametrize("conv", ["gcn", "sage", "gine", "gatedgcn"])
@pytest.mark.parametrize("virtual", [True, False])
def test_graphs_of_a_batch_do_not_see_each_other(conv, virtual):
    model = VirtualNodeNetwork(6, 3, conv, virtual=virtual).eval()
    x, edges, attr, batch = graph(6, conv in ("gine", "gatedgcn"))
    together = model(x, edges, attr, batch)
    start = 0
    for g, size in enumerate(GRAPHS):
        inside = ((edges >= start) & (edges < start + size)).all(0)
        alone = model(x[batch == g], edges[:, inside] - start, None if attr is None else attr[inside])
        torch.testing.assert_close(alone, together[batch == g], atol=1e-5, rtol=1e-4)
        start += size


@settings(max_examples=15, deadline=None)
@given(sizes=sizes, dim=st.integers(1, 6), seed=st.integers(0, 3))
def test_attention_of_a_batch_is_attention_of_each_graph(sizes, dim, seed):
    torch.manual_seed(seed)
    x, _, batch = random_batch(sizes, 2 * dim, seed)
    for layer in (
        FullAttention(2 * dim, 2),
        LinearAttention(2 * dim, 2),
        LinearAttention(2 * dim, 2, RandomFeatures(dim)),
    ):
        together = layer(x, batch=batch)
        for g in range(len(sizes)):
            torch.testing.assert_close(layer(x[batch == g]), together[batch == g], atol=1e-5, rtol=1e-4)


def test_random_features_give_the_softmax_kernel_on_average():
    query, key = torch.randn(2, 4).double() / 2
    features = [RandomFeatures(4, 4000, seed=seed).double() for seed in range(5)]
    kernel = torch.stack([f(query) @ f(key) for f in features]).mean()
    torch.testing.assert_close(kernel, (query @ key / 2).exp(), rtol=0.05, atol=0)


@pytest.mark.parametrize("graphs", [[], [1], [3]])
@pytest.mark.parametrize("conv", ["gcn", "sage"])
def test_no_node_one_node_and_no_edge_are_fine(graphs, conv):
    x, edges, batch = random_batch(graphs, 4, density=0)
    for batch_or_none in (batch, None):
        assert VirtualNodeNetwork(4, 2, conv, norm="layer").eval()(x, edges, None, batch_or_none).shape == x.shape


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("build", [DeepSetsVN, FullAttention, LinearAttention])
def test_a_gps_layer_takes_any_branches_and_norms(build, norm):
    x, edges, attr, batch = graph(6)
    for local in (GatedGCN(6), GINEConv(nn.Linear(6, 6)), None):
        out = nodes_of(GPSLayer(local, build(6), 6, norm=norm, dropout=0.1)(x, edges, attr, batch))
        assert out.shape == x.shape and out.isfinite().all()
    assert GPSLayer(SAGEConv(6, 6), None, 6, norm=norm)(x, edges, None, batch).shape == x.shape


MODELS = {
    "virtual node": (lambda: VirtualNode(SAGEConv(8, 8), 8, aggregate="softmax"), False),
    "gatedgcn": (lambda: VirtualNodeNetwork(8, 3), True),
    "gcn": (lambda: VirtualNodeNetwork(8, 2, "gcn"), False),
    "gine": (lambda: VirtualNodeNetwork(8, 2, "gine"), True),
    "gps": (lambda: GPSLayer(GatedGCN(8), DeepSetsVN(8, 2), 8), True),
    "linear attention as vn": (lambda: LinearAttentionAsVN.from_attention(LinearAttention(8, 2)), False),
}


@pytest.mark.parametrize("name", ["virtual node", "gatedgcn", "gps", "linear attention as vn"])
def test_compiled_without_a_graph_break(name):
    build, attr = MODELS[name]
    model = build().eval()
    x, edges, edge_attr, batch = graph(8, attr)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    out, expected = (m(x, edges, edge_attr, batch, graphs=3) for m in (compiled, model))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_compiled_code_serves_batches_of_other_sizes():
    model = VirtualNodeNetwork(8, 2, "sage").eval()
    compiled = torch.compile(model, dynamic=True, backend="eager")
    for sizes in ([5, 1, 4], [7, 2, 9]):
        x, edges, _, batch = graph(8, False, sizes)
        torch.testing.assert_close(
            compiled(x, edges, None, batch, graphs=3), model(x, edges, None, batch), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("name", MODELS)
def test_bf16_gradients_and_a_strict_round_trip(name):
    build, attr = MODELS[name]
    model, other = build(), build()
    other.load_state_dict(model.state_dict(), strict=True)
    x, edges, edge_attr, batch = graph(8, attr)
    model, other = model.eval(), other.eval()
    expected = nodes_of(model(x, edges, edge_attr, batch))
    torch.testing.assert_close(nodes_of(other(x, edges, edge_attr, batch)), expected)
    low = model.bfloat16()
    given = x.bfloat16().requires_grad_()
    out = nodes_of(low(given, edges, None if edge_attr is None else edge_attr.bfloat16(), batch))
    assert out.dtype is torch.bfloat16
    out.float().square().sum().backward()
    assert given.grad.isfinite().all() and given.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.tensor([0, 1, 0]), "batch must be sorted, got 0 after 1 at node 2"),
        (torch.tensor([0, 0, 2]), "batch must not skip a graph, got no node of graph 1"),
        (torch.tensor([1, 1, 2]), "batch must not skip a graph, got no node of graph 0"),
        (torch.tensor([0, 0]), "batch must have one entry per node, 3, got 2"),
        (torch.tensor([-1, 0, 0]), "batch must hold graphs from 0"),
    ],
)
def test_a_batch_vector_that_cannot_be_used_is_named(batch, message):
    x, edges = torch.randn(3, 4), torch.zeros(2, 0, dtype=torch.long)
    for layer in (VirtualNode(GCNConv(4, 4), 4), DeepSetsVN(4), FullAttention(4), LinearAttention(4)):
        with pytest.raises(ValueError, match=message):
            layer(x, edges, None, batch)


def test_a_missing_batch_vector_is_named_where_there_are_several_graphs():
    x, edges = torch.randn(3, 4), torch.zeros(2, 0, dtype=torch.long)
    layer = VirtualNode(GCNConv(4, 4), 4)
    with pytest.raises(ValueError, match="batch must be given for 2 graphs, got None"):
        layer(x, edges, graphs=2)
    with pytest.raises(ValueError, match="batch must hold graphs from 0 to 1"):
        layer(x, edges, None, torch.tensor([0, 1, 2]), graphs=2)
    with pytest.raises(TypeError, match="batch must be a vector of int64"):
        layer(x, edges, None, torch.tensor([0.0, 1.0, 2.0]))


def test_shapes_that_do_not_match_are_named():
    x, edges, attr, batch = graph(6)
    with pytest.raises(ValueError, match=r"x must have shape \(nodes, 8\), got \(10, 6\)"):
        VirtualNode(GCNConv(8, 8), 8)(x, edges, None, batch)
    with pytest.raises(ValueError, match=r"edge_index must have shape \(2, edges\)"):
        VirtualNode(GCNConv(6, 6), 6)(x, edges.T, None, batch)
    with pytest.raises(TypeError, match="edge_index must be int64"):
        VirtualNode(GCNConv(6, 6), 6)(x, edges.float(), None, batch)
    with pytest.raises(ValueError, match=r"edge_attr must have shape \(20, 6\), got \(20, 5\)"):
        VirtualNodeNetwork(6, 2)(x, edges, attr[:, :5], batch)
    with pytest.raises(ValueError, match=r"edge_attr must have shape \(20, 6\), got None"):
        VirtualNodeNetwork(6, 2)(x, edges, None, batch)
    with pytest.raises(ValueError, match="edge_attr must have one row per edge, 20, got 3"):
        VirtualNode(GINEConv(nn.Linear(6, 6)), 6)(x, edges, attr[:3], batch)
    with pytest.raises(ValueError, match="edge_attr must have width 6"):
        VirtualNode(GATConv(6, 6, edge_dim=6), 6)(x, edges, attr[:, :5], batch)
    with pytest.raises(ValueError, match="edge_attr must be None, SAGEConv takes none"):
        VirtualNode(SAGEConv(6, 6), 6)(x, edges, attr, batch)


def test_options_that_are_not_accepted_are_named():
    with pytest.raises(ValueError, match="aggregate must be one of sum, mean, max, min, softmax, got 'median'"):
        VirtualNode(GCNConv(4, 4), 4, aggregate="median")
    with pytest.raises(ValueError, match="pool must be one of after, before"):
        VirtualNode(GCNConv(4, 4), 4, pool="during")
    with pytest.raises(ValueError, match="norm must be one of batch, layer, none, got 'batch, layer'"):
        GPSLayer(None, DeepSetsVN(4), 4, norm="batch, layer")
    with pytest.raises(ValueError, match="local and global_ must not both be None"):
        GPSLayer(None, None, 4)
    with pytest.raises(ValueError, match="dim must be a multiple of heads, got dim=6 and heads=4"):
        FullAttention(6, 4)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        VirtualNodeNetwork(4, 0)


def test_batch_norm_over_a_single_graph_in_training_is_refused_and_layer_norm_is_not():
    x, edges, _, _ = graph(4, attr=False)
    with pytest.raises(ValueError, match="two graphs or more for an update with batch norm, got 1; use norm='layer'"):
        VirtualNode(GCNConv(4, 4), 4, update=virtual_mlp(4, norm="batch"))(x, edges)
    VirtualNode(GCNConv(4, 4), 4)(x, edges)
