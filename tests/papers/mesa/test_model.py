import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.mesa import CausalLinearAttention, ar_sequences, gradient_step, least_squares, recovery_ratio
from everyformer.papers.mesa.model import forecast, loss, recovery_ratios

SHAPES = {
    "dim": st.integers(1, 6),
    "length": st.integers(3, 50),
    "batch": st.integers(1, 4),
    "seed": st.integers(0, 99),
}


def sequences(dim, length, batch, seed, dtype=torch.complex128):
    return ar_sequences("gaussian", dim, length, batch, seed).to(dtype)


@settings(max_examples=30, deadline=None)
@given(a=st.floats(0.01, 3), b=st.floats(0.01, 3), **SHAPES)
def test_the_constructed_layer_is_one_step_of_gradient_descent_in_its_context(a, b, dim, length, batch, seed):
    for dtype, tolerance in ((torch.complex128, 1e-10), (torch.complex64, 1e-6)):
        x = sequences(dim, length, batch, seed, dtype) / 8
        layer = CausalLinearAttention.from_product(a, b, dim, dtype)
        torch.testing.assert_close(layer.forecast(x), gradient_step(x, a * b), atol=tolerance, rtol=tolerance * 10)


@settings(max_examples=30, deadline=None)
@given(**SHAPES)
def test_gradient_step_is_what_autograd_says(dim, length, batch, seed):
    x = sequences(dim, length, batch, seed)
    w = torch.zeros(batch, dim, dim, dtype=x.dtype, requires_grad=True)
    error = x[:, 1:] - x[:, :-1] @ w.mT
    (grad,) = torch.autograd.grad(0.5 * (error.abs() ** 2).sum(), w)
    stepped = -0.3 / (length - 1) * grad
    torch.testing.assert_close((stepped @ x[:, -1:].mT).squeeze(-1), gradient_step(x, 0.3), atol=1e-10, rtol=1e-10)


@settings(max_examples=30, deadline=None)
@given(**SHAPES)
def test_prefix_sums_give_the_layer_of_the_definition(dim, length, batch, seed):
    torch.manual_seed(seed)
    x, layer = sequences(dim, length, batch, seed), CausalLinearAttention(dim, torch.complex128)
    out = layer(x)
    assert out.shape == (batch, length - 1, dim)
    for t in range(2, length + 1):
        past = torch.cat([torch.zeros(batch, 1, dim, dtype=x.dtype), x[:, : t - 1]], dim=1)
        e = torch.cat([x[:, :t], past], dim=-1).mT
        expected = layer.w_pv @ e @ e.mH @ layer.w_kq @ e[:, :, -1:] / (t - 1)
        torch.testing.assert_close(out[:, t - 2], expected.squeeze(-1), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(layer.forecast(x), out[:, -1], atol=1e-10, rtol=1e-10)


def test_a_forecast_sees_no_later_token():
    x = sequences(3, 9, 2, 0)
    layer = CausalLinearAttention(3, torch.complex128)
    changed = x.clone()
    changed[:, 6:] = 0
    torch.testing.assert_close(layer(x)[:, :5], layer(changed)[:, :5], atol=0, rtol=0)


def test_several_layers_forecast_at_once():
    x = sequences(3, 9, 2, 0)
    layers = [CausalLinearAttention(3, torch.complex128) for _ in range(4)]
    together = forecast(x, torch.stack([m.w_kq for m in layers]), torch.stack([m.w_pv for m in layers]))
    torch.testing.assert_close(together, torch.stack([m.forecast(x) for m in layers]))


def test_the_loss_counts_half_the_squared_error_of_all_tokens_that_can_be_forecast():
    x = sequences(2, 7, 3, 0)
    assert loss(torch.cat([x[:, 2:], x[:, :1]], dim=1), x) == 0
    zero = loss(torch.zeros_like(x[:, 1:]), x)
    torch.testing.assert_close(zero, 0.5 * (x[:, 2:].abs() ** 2).sum() / 3)


@settings(max_examples=20, deadline=None)
@given(**SHAPES)
def test_least_squares_is_exact_from_two_tokens_on(dim, length, batch, seed):
    x = sequences(dim, length, batch, seed)
    for known in (2, length - 1):
        torch.testing.assert_close(least_squares(x[:, :known]), x[:, known], atol=1e-5, rtol=1e-5)
    sparse = ar_sequences("sparse", dim, length, batch, seed)
    torch.testing.assert_close(least_squares(sparse[:, :-1]), sparse[:, -1], atol=1e-5, rtol=1e-5)


def test_recovery_ratio_is_one_where_the_learner_recovers_and_a_fifth_for_gaussian_values():
    assert abs(recovery_ratio(CausalLinearAttention.from_product(0.5, 2.0, 4), "sparse", 20, starts=200) - 1) < 1e-4
    layer = CausalLinearAttention.from_product(0.4, 0.5, 4)
    assert abs(recovery_ratio(layer, "gaussian", 200, starts=2000, repeats=4) - 0.2) < 0.03
    both = recovery_ratios(torch.stack([layer.w_kq] * 2), torch.stack([layer.w_pv] * 2), "signs", 20, starts=50)
    assert both.shape == (2,) and abs(both[0] - 0.2) < 0.05


def test_a_layer_round_trips_and_compiles_whole():
    layer, twin = CausalLinearAttention(3), CausalLinearAttention(3)
    twin.load_state_dict(layer.state_dict(), strict=True)
    x = sequences(3, 9, 2, 0, torch.complex64)
    torch.testing.assert_close(twin(x), layer(x), atol=0, rtol=0)
    # Inductor writes no code for complex numbers; the graph is captured whole all the same.
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    loss(compiled(x), x).backward()
    assert layer.w_kq.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CausalLinearAttention(0), "dim must be at least 1"),
        (lambda: CausalLinearAttention(2, torch.float32), "dtype must be complex"),
        (lambda: CausalLinearAttention.from_product(0.0, 1.0, 2), "a must be positive"),
        (lambda: CausalLinearAttention.from_product(1.0, -1.0, 2), "b must be positive"),
        (lambda: CausalLinearAttention(2)(torch.zeros(1, 5, 3, dtype=torch.complex64)), r"shape \(batch, time, 2\)"),
        (lambda: CausalLinearAttention(2)(torch.zeros(1, 1, 2, dtype=torch.complex64)), "time at least 2"),
        (lambda: CausalLinearAttention(2).forecast(torch.zeros(1, 5, 2)), "x must be complex"),
        (lambda: recovery_ratio(CausalLinearAttention(2), lambda b, d, g: torch.zeros(b, d), 5), "other than zero"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
