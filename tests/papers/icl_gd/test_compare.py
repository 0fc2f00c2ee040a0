import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.icl_gd import (
    InContextTransformer,
    TokenMLP,
    alignment,
    copying,
    gd_weights,
    gradient_descent,
    interpolate,
    iterated,
    normalised,
    regression_tasks,
    sensitivity,
    token_sequence,
)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.floats(0.1, 2))
def test_the_sensitivity_of_a_step_is_the_weight_that_the_step_learns(dim_x, dim_y, context, rate):
    tokens = regression_tasks(3, dim_x, dim_y, context).tokens.double()
    found, gradient = sensitivity(gd_weights(dim_x, dim_y, context, rate, dtype=torch.float64), tokens, dim_y)
    weight = rate / context * tokens[:, :-1, dim_x:].mT @ tokens[:, :-1, :dim_x]
    torch.testing.assert_close(gradient, weight)
    torch.testing.assert_close(found, gradient_descent(tokens, rate, 1, dim_y)[0])


def test_a_model_is_aligned_with_itself_and_with_another_rate_in_direction():
    tokens = regression_tasks(50).tokens
    slow, fast = gd_weights(10, 1, 10, 1.0), gd_weights(10, 1, 10, 2.0)
    same, other = alignment(slow, slow, tokens), alignment(slow, fast, tokens)
    assert same["prediction_difference"] == same["sensitivity_difference"] == 0
    assert same["cosine"] == pytest.approx(1, abs=1e-4) and other["cosine"] == pytest.approx(1, abs=1e-4)
    assert other["prediction_difference"] > 0 and other["sensitivity_difference"] > 0


def test_alignment_refuses_tasks_that_are_not_finite():
    model = gd_weights(2, 1, 3, 1.0)
    with pytest.raises(ValueError, match="finite"):
        alignment(model, model, torch.full((1, 4, 3), float("nan")))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 2), st.integers(1, 3))
def test_interpolation_goes_from_the_model_to_the_reference(dim_x, dim_y, layers):
    torch.manual_seed(dim_x)
    tokens = regression_tasks(3, dim_x, dim_y).tokens
    model = InContextTransformer(dim_x + dim_y, layers, outputs=dim_y, init_scale=0.3)
    reference = gd_weights(dim_x, dim_y, 10, 1.0, steps=layers)
    for weight, end in ((0.0, model), (1.0, reference)):
        torch.testing.assert_close(interpolate(model, reference, weight)(tokens), end(tokens), atol=1e-4, rtol=1e-3)


def test_interpolation_half_way_averages_matrices_of_one_scale():
    model, reference = InContextTransformer(4, init_scale=0.5), gd_weights(3, 1, 10, 2.0)
    kq, vp = normalised(interpolate(model, reference))
    expected = [(a + b) / 2 for a, b in zip(normalised(model), normalised(reference), strict=True)]
    torch.testing.assert_close((kq, vp), tuple(expected), atol=1e-4, rtol=1e-4)
    assert expected[0].diagonal()[:-1].mean().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (InContextTransformer(4, heads=2), "one head"),
        (InContextTransformer(4, softmax=True), "linear attention"),
        (InContextTransformer(4, 2, tied=False), "tied"),
        (InContextTransformer(4, norm=True), "norms"),
        (InContextTransformer(4, bias=True), "biases"),
        (InContextTransformer(4, mlp=2), "MLP"),
        (InContextTransformer(4, embed=TokenMLP(2, 4, 8)), "embedding"),
        (InContextTransformer(5), "dim, layers and outputs"),
    ],
)
def test_interpolation_refuses_what_two_matrices_do_not_describe(model, reason):
    with pytest.raises(ValueError, match=reason):
        interpolate(model, gd_weights(3, 1, 10, 1.0, steps=model.layers))


def test_iterating_the_construction_is_descent_at_the_dampened_rate():
    tokens = regression_tasks(6).tokens.double()
    model = iterated(gd_weights(10, 1, 10, 2.0, dtype=torch.float64), 50, dampening=0.75)
    found = torch.stack([-h[:, -1, -1:] for h, _ in model.trace(tokens)])
    torch.testing.assert_close(found, gradient_descent(tokens, 1.5, 50), atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match="tied"):
        iterated(InContextTransformer(4, 2, tied=False), 3)


def test_copying_tells_a_layer_that_looks_at_the_next_token_from_one_that_does_not():
    tokens = token_sequence(regression_tasks(8, 4, context=5).tokens)
    model = InContextTransformer(10, 1, positions=6, softmax=True, exclude_query=False)
    blank = copying(model, tokens)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        layer = model.layer()
        # Position codes turned by one step: each token looks at the code of the next, and copies what is there.
        for pair, rate in enumerate(10000.0 ** (-torch.arange(0, 6, 2) / 6)):
            c, s, at = rate.cos(), rate.sin(), 4 + 2 * pair
            layer.query[0, at : at + 2, at : at + 2] = 300 * torch.tensor([[c, -s], [s, c]])
            layer.key[0, at : at + 2, at : at + 2] = torch.eye(2)
        layer.value[0, :4, :4] = layer.out[0, :4, :4] = torch.eye(4)
    found = copying(model, tokens)
    assert found["next"] == pytest.approx(found["own"], rel=1e-2) and found["other"] < 0.01 * found["own"]
    assert blank["next"] < 0.01 * blank["own"]
