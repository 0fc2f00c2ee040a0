import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from everyformer.papers.icl_gd import (
    LearnedGDPlusPlus,
    Lift,
    best_rate,
    gd_weights,
    gdpp_weights,
    gradient_descent,
    kernel_descent,
    optimal_rate,
    regression_tasks,
    regression_tokens,
)

sizes = st.integers(1, 12)


def draw(seed, dim_x, dim_y, context, dtype=torch.float64, batch=5):
    generator = torch.Generator().manual_seed(seed)
    tokens, _ = regression_tasks(batch, dim_x, dim_y, context, generator=generator)
    w0 = torch.randn(dim_y, dim_x, generator=generator).to(dtype)
    tokens = tokens.to(dtype)
    return regression_tokens(tokens[:, :-1, :dim_x], tokens[:, :-1, dim_x:], tokens[:, -1, :dim_x], w0), w0


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 4), st.integers(1, 40), st.floats(0.01, 0.99), st.integers(1, 6), st.integers(0, 99))
def test_layers_predict_what_gradient_descent_predicts_from_any_start(dim_x, dim_y, context, share, steps, seed):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        tokens, w0 = draw(seed, dim_x, dim_y, context, dtype)
        # A share of the largest rate for which descent is stable; beyond it, rounding errors grow without bound.
        rate = share * 2 * context / torch.linalg.matrix_norm(tokens[:, :-1, :dim_x], 2).square().max().item()
        expected = gradient_descent(tokens.double(), rate, steps, dim_y, w0)[-1]
        with torch.no_grad():
            found = gd_weights(dim_x, dim_y, context, rate, w0, steps, dtype=dtype)(tokens).double()
        assert ((found - expected).abs() / expected.abs().clamp_min(1)).max() <= tolerance


def test_every_layer_is_a_step():
    tokens, w0 = draw(0, 4, 2, 9)
    model = gd_weights(4, 2, 9, 1.5, w0, steps=5, dtype=torch.float64)
    found = torch.stack([-h[:, -1, -2:] for h, _ in model.trace(tokens)])
    torch.testing.assert_close(found, gradient_descent(tokens, 1.5, 5, 2, w0), atol=1e-12, rtol=0)


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 3), sizes, st.floats(0.05, 3), st.floats(0, 0.3), st.integers(1, 4), st.integers(0, 99))
def test_gdpp_moves_inputs_and_targets_by_its_equations(dim_x, dim_y, context, rate, gamma, steps, seed):
    tokens = regression_tasks(3, dim_x, dim_y, context, generator=torch.Generator().manual_seed(seed)).tokens.double()
    x, y = tokens[..., :dim_x], tokens[..., dim_x:]
    for _ in range(steps):
        covariance = x[:, :-1].mT @ x[:, :-1]
        y = y - rate / context * (x @ x[:, :-1].mT) @ y[:, :-1]
        x = x @ (torch.eye(dim_x) - gamma * covariance)
    model = gdpp_weights(dim_x, dim_y, context, rate, gamma, steps, dtype=torch.float64)
    torch.testing.assert_close(model(tokens), -y[:, -1], atol=1e-10, rtol=1e-10)


def test_gdpp_without_curvature_is_gradient_descent():
    tokens = regression_tasks(4).tokens.double()
    found = gdpp_weights(10, 1, 10, 2.0, 0.0, 3, dtype=torch.float64)(tokens)
    torch.testing.assert_close(found, gradient_descent(tokens, 2.0, 3)[-1], atol=1e-12, rtol=0)


def test_learned_gdpp_is_the_transformer_it_gives_and_learns():
    tasks = regression_tasks(64, generator=torch.Generator().manual_seed(0))
    model = LearnedGDPlusPlus(10, rate=4.0, gamma=0.04)
    torch.testing.assert_close(model(tasks.tokens), model.module(10)(tasks.tokens), atol=1e-6, rtol=1e-5)
    (model(tasks.tokens) - tasks.target).square().mean().backward()
    assert all(p.grad.abs().min() > 0 for p in model.parameters())


def test_a_construction_can_be_perturbed_and_trained_on_from():
    tasks = regression_tasks(256, generator=torch.Generator().manual_seed(0))
    model = gd_weights(10, 1, 10, 1.0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        loss = (model(tasks.tokens) - tasks.target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.floats(0.05, 2), st.integers(0, 99))
def test_online_tokens_hold_the_error_of_descent_on_the_window_before_them(dim_x, window, rate, seed):
    tokens, w0 = draw(seed, dim_x, 1, 12)
    model = gd_weights(dim_x, 1, window, rate, w0, online=True, dtype=torch.float64)
    ((h, _),) = model.trace(tokens)
    for j in range(13):
        past = tokens[:, max(0, j - window) : j]
        x, y = past[..., :dim_x], past[..., dim_x:]
        weight = w0 - rate / window * ((x @ w0.mT - y).mT @ x)
        begun = tokens[:, j, dim_x:] + tokens[:, j, :dim_x] @ w0.mT
        expected = begun - (tokens[:, j, None, :dim_x] @ weight.mT)[:, 0]
        torch.testing.assert_close(h[:, j, dim_x:], expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(model(tokens), -h[:, -1, dim_x:])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 16), st.integers(1, 4), st.floats(0.05, 1), st.integers(0, 99))
def test_a_representation_in_front_gives_descent_with_its_kernel(dim_x, features, steps, rate, seed):
    torch.manual_seed(seed)
    tokens = regression_tasks(3, dim_x, context=8, generator=torch.Generator().manual_seed(seed)).tokens.double()
    deep = nn.Sequential(nn.Linear(dim_x, features), nn.Tanh()).double()
    model = gd_weights(features, 1, 8, rate, steps=steps, embed=Lift(deep), dtype=torch.float64)
    phi = deep(tokens[..., :dim_x])
    kernel, query = phi[:, :-1] @ phi[:, :-1].mT, (phi[:, -1:] @ phi[:, :-1].mT)[:, 0]
    expected = kernel_descent(kernel, query, tokens[:, :-1, dim_x:], rate, steps)
    torch.testing.assert_close(model(tokens), expected, atol=1e-10, rtol=1e-10)


@settings(max_examples=15, deadline=None)
@given(sizes, st.integers(1, 3), sizes, st.integers(1, 4), st.sampled_from([0.0, 0.02]))
def test_the_scan_gives_every_rate_the_loss_of_its_transformer(dim_x, dim_y, context, steps, curvature):
    tasks = regression_tasks(20, dim_x, dim_y, context, generator=torch.Generator().manual_seed(steps))
    rates = torch.tensor([0.3, 1.0, 2.5])
    scan = best_rate(*tasks, steps=steps, rates=rates, curvature=curvature)
    for rate, loss in zip(rates.tolist(), scan.losses.tolist(), strict=True):
        model = gdpp_weights(dim_x, dim_y, context, rate, curvature * rate, steps, dtype=torch.float64)
        expected = 0.5 * (model(tasks.tokens.double()) - tasks.target).square().mean()
        assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert scan.loss == scan.losses.min() and scan.rate == rates[scan.losses.argmin()]


@pytest.mark.parametrize(("d", "n", "r"), [(10, 10, 1.0), (3, 20, 2.0), (1, 4, 1.0)])
def test_the_closed_form_is_where_the_scan_ends(d, n, r):
    tasks = regression_tasks(20_000, d, context=n, input_range=r, generator=torch.Generator().manual_seed(0))
    closed = optimal_rate(d, n, r**2 / 12, r**4 / 80)
    scan = best_rate(*tasks, rates=torch.linspace(0.5, 1.5, 101) * closed.rate)
    assert scan.rate == pytest.approx(closed.rate, rel=0.06)
    assert scan.loss == pytest.approx(closed.loss, rel=0.05)


def test_the_closed_form_at_the_papers_size():
    assert optimal_rate(10, 10, 1 / 12, 1 / 80) == pytest.approx((6.0606, 0.20623), rel=1e-4)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: gd_weights(0, 1, 10, 1.0), "dim_x"),
        (lambda: gd_weights(3, 0, 10, 1.0), "dim_y"),
        (lambda: gd_weights(3, 1, 0, 1.0), "context"),
        (lambda: gd_weights(3, 1, 10, 0.0), "rate"),
        (lambda: gd_weights(3, 1, 10, float("nan")), "rate"),
        (lambda: gdpp_weights(3, 1, 10, -1.0, 0.1), "rate"),
        (lambda: gd_weights(3, 1, 10, 1.0, torch.zeros(3, 1)), "w0"),
        (lambda: gd_weights(3, 1, 10, 1.0, steps=2, online=True), "steps"),
        (lambda: optimal_rate(3, 1, 1.0, 0.5), "m4"),
        (lambda: best_rate(torch.zeros(2, 1, 4), torch.zeros(2, 1)), "tokens"),
        (lambda: best_rate(torch.zeros(2, 3, 4), torch.zeros(3, 1)), "target"),
        (lambda: best_rate(torch.full((2, 3, 4), float("nan")), torch.zeros(2, 1)), "finite"),
        (lambda: best_rate(torch.zeros(2, 3, 4), torch.zeros(2, 1), rates=torch.tensor([1.0, 0.0])), "rates"),
        (lambda: gd_weights(3, 1, 10, 1.0)(torch.zeros(2, 5, 5)), "tokens"),
        (lambda: gd_weights(3, 1, 10, 1.0)(torch.zeros(2, 1, 4)), "context"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()
