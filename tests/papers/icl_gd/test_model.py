import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.icl_gd import InContextTransformer, LinearSelfAttention, TokenMLP


def plain(layer, tokens):
    """Queries, keys, values and a projection, head by head."""
    context = tokens[:, :-1] if layer.exclude_query else tokens
    out = torch.zeros_like(tokens)
    for head in range(layer.heads):
        maps = [getattr(layer, name)[head] for name in ("query", "key", "value")]
        if layer.bias:
            q, k, v = (x @ m[:-1] + m[-1] for x, m in zip((tokens, context, context), maps, strict=True))
        else:
            q, k, v = (x @ m for x, m in zip((tokens, context, context), maps, strict=True))
        scores = q @ k.mT
        if layer.softmax:
            scores = (scores / layer.head_dim**0.5).softmax(-1)
        out = out + scores @ v @ layer.out[head]
    return out if layer.out_bias is None else out + layer.out_bias


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 3), st.integers(1, 4), st.integers(1, 30), st.booleans(), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_merged_matrices_give_what_four_projections_give(dim, heads, head_dim, context, softmax, exclude, bias):
    layer = LinearSelfAttention(dim, heads, heads * head_dim, softmax, exclude, bias).double()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    tokens = torch.randn(2, context + 1, dim).double()
    torch.testing.assert_close(layer(tokens), plain(layer, tokens), atol=1e-9, rtol=1e-9)


def test_the_short_way_for_long_contexts_has_the_gradients_of_the_long_one():
    layer = LinearSelfAttention(3, 2, 4).double()
    tokens = torch.randn(2, 9, 3).double().requires_grad_()
    short = torch.autograd.grad(layer(tokens).square().sum(), [tokens, *layer.parameters()])
    full = torch.autograd.grad(
        layer.attend(tokens, tokens, need_weights=True)[0].square().sum(), [tokens, *layer.parameters()]
    )
    torch.testing.assert_close(short, full)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": 3},
        {"layers": 2, "tied": False, "softmax": "first", "heads": 2},
        {"layers": 2, "tied": False, "norm": True, "mlp": 2, "bias": True, "softmax": True},
        {"layers": 3, "clip": 0.5, "dampening": 0.7, "y_only": True},
        {"positions": 2},
        {"window": 3},
        {"exclude_query": False},
        {"outputs": 2},
    ],
)
def test_the_prediction_is_the_last_token_of_the_trace(options):
    model = InContextTransformer(6, init_scale=1.0, **options)
    tokens = torch.randn(4, 8, 6 - options.get("positions", 0))
    *_, (h, weights) = model.trace(tokens)
    torch.testing.assert_close(model(tokens), -h[:, -1, -model.outputs :], atol=1e-5, rtol=1e-5)
    assert weights.shape == (4, options.get("heads", 1), 8, 7 + (not options.get("exclude_query", True)))


def test_the_query_is_no_key_to_others():
    model = InContextTransformer(4, init_scale=1.0)
    tokens = torch.randn(2, 6, 4)
    other = tokens.clone()
    other[:, -1] += 1
    ((before, _),), ((after, _),) = model.trace(tokens), model.trace(other)
    torch.testing.assert_close(before[:, :-1], after[:, :-1])


def test_context_in_another_order_gives_the_same_prediction():
    model = InContextTransformer(4, 2, init_scale=1.0)
    tokens = torch.randn(2, 6, 4)
    order = torch.cat([torch.randperm(5), torch.tensor([5])])
    torch.testing.assert_close(model(tokens), model(tokens[:, order]))


def test_initial_weights_have_the_variance_asked_for():
    layer = LinearSelfAttention(400, init_scale=0.5)
    assert layer.query.var().item() == pytest.approx(0.5 / 400, rel=0.05)
    assert layer.query.abs().max() <= 2 * (0.5 / 400) ** 0.5 / 0.87


@pytest.mark.parametrize(
    "build",
    [
        lambda: InContextTransformer(6, 2),
        lambda: InContextTransformer(6, 2, tied=False, softmax=True, norm=True, mlp=2, bias=True),
        lambda: InContextTransformer(8, embed=TokenMLP(6, 8, 16)),
        lambda: InContextTransformer(6, window=2),
    ],
)
def test_it_compiles_whole_runs_in_bf16_and_reloads_strictly(build):
    model, tokens = build(), torch.randn(2, 9, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), model(tokens), atol=1e-5, rtol=1e-4)
    again = build()
    again.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(again(tokens), model(tokens))
    assert model.to(torch.bfloat16)(tokens.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"key_dim": 5, "heads": 2}, "key_dim"),
        ({"heads": 0}, "heads"),
        ({"layers": 0}, "layers"),
        ({"dampening": 0.0}, "dampening"),
        ({"clip": 0.0}, "clip"),
        ({"softmax": "first"}, "softmax"),
        ({"softmax": True, "window": 3}, "window"),
        ({"positions": 6}, "positions"),
        ({"outputs": 6}, "outputs"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        InContextTransformer(6, **options)
