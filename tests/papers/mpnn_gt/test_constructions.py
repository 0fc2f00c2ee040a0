import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch_geometric.nn.attention import PerformerAttention

from everyformer.papers.mpnn_gt import (
    DeepSetsVN,
    EquivariantLinear,
    FullAttention,
    LinearAttention,
    LinearAttentionAsVN,
    RandomFeatures,
    as_virtual_node,
    deep_sets_as_vn,
    separation,
    softmax_attention_as_vn,
)
from everyformer.papers.mpnn_gt.relu import linear_attention_as_relu_vn
from everyformer.papers.mpnn_gt.segments import Segments

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


@settings(max_examples=40, deadline=None)
@given(
    sizes=sizes, heads=st.integers(1, 4), head_dim=st.integers(1, 8), random=st.booleans(), density=st.integers(0, 3)
)
def test_linear_attention_is_reproduced_on_any_batch_of_graphs(sizes, heads, head_dim, random, density):
    torch.manual_seed(0)
    target = LinearAttention(heads * head_dim, heads, RandomFeatures(head_dim) if random else None)
    x, edges, batch = random_batch(sizes, heads * head_dim, density=density)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-10)):
        target = target.to(dtype)
        ours = LinearAttentionAsVN.from_attention(target)
        difference = ours(x.to(dtype), edges, batch=batch) - target(x.to(dtype), batch=batch)
        assert difference.abs().max() <= tolerance


def test_linear_attention_is_reproduced_on_an_empty_graph():
    target = LinearAttention(8, 2)
    ours = LinearAttentionAsVN.from_attention(target)
    nothing = torch.zeros(0, 8)
    for batch in (None, torch.zeros(0, dtype=torch.long)):
        assert ours(nothing, batch=batch).shape == target(nothing, batch=batch).shape == (0, 8)
    x, _, batch = random_batch([3, 2], 8)
    skipping = torch.where(batch > 0, 2, 0)  # graph 1 of three has no nodes
    torch.testing.assert_close(ours(x, batch=skipping, graphs=3), target(x, batch=batch), atol=1e-6, rtol=0)


@settings(max_examples=15, deadline=None)
@given(nodes=st.integers(1, 30), heads=st.integers(1, 3), head_dim=st.integers(2, 8))
def test_pygs_performer_is_reproduced(nodes, heads, head_dim):
    torch.manual_seed(0)
    performer = PerformerAttention(heads * head_dim, heads, head_channels=head_dim).double().eval()
    x = torch.randn(nodes, heads * head_dim, dtype=torch.float64)
    ours = LinearAttentionAsVN.from_attention(performer)
    torch.testing.assert_close(ours(x), performer(x[None])[0], atol=1e-10, rtol=0)


def test_the_width_of_the_virtual_node_does_not_depend_on_the_nodes():
    ours = LinearAttentionAsVN.from_attention(LinearAttention(12, 3))
    assert ours.message(torch.randn(5, 12)).shape[1] == ours.message(torch.randn(50, 12)).shape[1] == 3 * 4 * 5


def test_a_construction_can_be_trained_on_and_leaves_its_source_alone():
    target = LinearAttention(8, 2)
    before = copy.deepcopy(target.state_dict())
    ours = LinearAttentionAsVN.from_attention(target)
    optimizer = torch.optim.SGD(ours.parameters(), 0.1)
    ours(torch.randn(6, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
    optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_a_denominator_that_is_not_positive_is_refused():
    for target in (LinearAttention(4, 1, nn.Tanh()), LinearAttention(4, 1, nn.ReLU())):
        nn.init.constant_(target.qkv.bias, -5.0)
        nn.init.constant_(target.qkv.bias[4:8], 5.0 if isinstance(target.features, nn.Tanh) else -5.0)
        for layer in (target, LinearAttentionAsVN.from_attention(target)):
            with pytest.raises(ValueError, match="features must give a denominator above 0"):
                layer(0.1 * torch.randn(3, 4))


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match="x must have width 3, got 4"):
        LinearAttention(8, 2, RandomFeatures(3))(torch.randn(2, 8))
    with pytest.raises(TypeError, match="module must be a LinearAttention"):
        LinearAttentionAsVN.from_attention(FullAttention(4))


@settings(max_examples=20, deadline=None)
@given(nodes=st.integers(1, 14), heads=st.integers(1, 3), head_dim=st.integers(2, 5), seed=st.integers(0, 5))
def test_softmax_attention_is_reproduced_within_the_bound(nodes, heads, head_dim, seed):
    torch.manual_seed(seed)
    target = FullAttention(heads * head_dim, heads).double()
    x = torch.randn(nodes, heads * head_dim, dtype=torch.float64)
    for sharpness in (0.5, 4.0, 16.0, 64.0):
        ours = softmax_attention_as_vn(target, x, sharpness)
        error = (ours(x) - target(x)).norm(dim=1).max()
        assert error <= ours.error_bound(x) + 1e-12
    assert ours.depth == 2 * nodes + 1


def test_softmax_attention_is_exact_when_sharp_and_blind_to_the_order_of_nodes():
    target = FullAttention(8, 2).double()
    x = torch.randn(12, 8, dtype=torch.float64)
    ours = softmax_attention_as_vn(target, x + 0.05 * torch.randn_like(x), 60.0)
    assert (ours(x) - target(x)).abs().max() < 1e-10
    order = torch.randperm(12)
    torch.testing.assert_close(ours(x[order]), ours(x)[order], atol=1e-10, rtol=0)


def test_softmax_attention_serves_several_graphs_with_the_same_centres():
    target = FullAttention(4, 1).double()
    centres = 3 * torch.randn(5, 4, dtype=torch.float64)
    x = torch.cat([centres + 0.1 * torch.randn_like(centres) for _ in range(3)])
    batch = torch.arange(3).repeat_interleave(5)
    ours = softmax_attention_as_vn(target, centres, 50.0)
    assert (ours(x, batch=batch) - target(x, batch=batch)).abs().max() < 1e-10


def test_softmax_attention_of_no_nodes_and_of_one():
    target = FullAttention(4, 1)
    for nodes in (0, 1):
        x = torch.randn(nodes, 4)
        torch.testing.assert_close(softmax_attention_as_vn(target, x, 1.0)(x), target(x))


def test_centres_that_do_not_separate_are_refused_with_the_pair_and_the_margin():
    target = FullAttention(2, 1)
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    with pytest.raises(ValueError, match=r"nodes \(0, 1\) of graph 0 tie for centre 0, margin 0"):
        softmax_attention_as_vn(target, torch.tensor([[0.5, 0.0], [1.0, 0.0], [0.0, 3.0]]), 1.0)(x)
    with pytest.raises(
        ValueError, match=r"centres \(0, 1\) of graph 0 both pick node 0 and none picks node 1, margin -"
    ):
        softmax_attention_as_vn(target, torch.tensor([[0.0, 0.0], [0.2, 0.0], [0.0, 3.0]]), 1.0)(x)
    with pytest.raises(ValueError, match="graph 0 has 3 nodes and 2 centres"):
        softmax_attention_as_vn(target, x[:2], 1.0)(x)
    with pytest.raises(ValueError, match=r"centres must have shape \(n, 2\)"):
        softmax_attention_as_vn(target, torch.zeros(3, 5), 1.0)
    with pytest.raises(ValueError, match="sharpness must be above 0, got 0"):
        softmax_attention_as_vn(target, x, 0.0)
    assert separation(x, x) == pytest.approx(1.0)


@settings(max_examples=30, deadline=None)
@given(
    sizes=sizes,
    dim=st.integers(1, 10),
    layers=st.integers(1, 3),
    reduce=st.sampled_from(["mean", "sum", "max", "min"]),
    activation=st.sampled_from(["relu", "elu", "none"]),
)
def test_deep_sets_are_reproduced_as_virtual_nodes(sizes, dim, layers, reduce, activation):
    torch.manual_seed(0)
    target = DeepSetsVN(dim, layers, reduce, activation).double().eval()
    x, edges, batch = random_batch(sizes, dim, dtype=torch.float64)
    difference = deep_sets_as_vn(target)(x, edges, batch=batch) - target(x, batch=batch)
    assert difference.abs().max() <= 1e-10


@pytest.mark.parametrize("dims", [(3, 5), (5, 3)])
def test_an_equivariant_layer_is_a_virtual_node_of_the_larger_width(dims):
    linear = EquivariantLinear(*dims).double()
    x, edges, batch = random_batch([4, 1], dims[0], dtype=torch.float64)
    layer = as_virtual_node(linear)
    assert layer.dim == 5
    padded = nn.functional.pad(x, (0, 5 - dims[0]))
    out = layer(padded, edges, batch=batch)[:, : dims[1]]
    torch.testing.assert_close(out, linear(x, Segments.of(x, batch)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("features", [None, RandomFeatures(2, 2)])
def test_relu_networks_keep_to_the_error_asked_for(features):
    target = LinearAttention(4, 2, features)
    target.qkv.weight.data.mul_(0.3)
    ours = linear_attention_as_relu_vn(target, 0.1, radius=0.5)
    exact = target.double()
    for nodes in (1, 7, 40):
        x = torch.rand(nodes, 4, dtype=torch.float64) - 0.5
        assert 0 < (ours(x) - exact(x)).abs().max() <= 0.1


def test_relu_networks_say_what_they_cannot_do():
    target = LinearAttention(4, 2)
    with pytest.raises(ValueError, match="epsilon must be above 0, got 0"):
        linear_attention_as_relu_vn(target, 0.0)
    with pytest.raises(ValueError, match="hidden units in one network, at most 20,000"):
        linear_attention_as_relu_vn(target, 1e-9)
    with pytest.raises(ValueError, match=r"x must lie within \[-1.0, 1.0\], got 2"):
        linear_attention_as_relu_vn(target, 1.0)(torch.full((1, 4), 2.0))
    with pytest.raises(TypeError, match="features must be EluFeatures or RandomFeatures, got ReLU"):
        linear_attention_as_relu_vn(LinearAttention(4, 2, nn.ReLU()), 0.1)
