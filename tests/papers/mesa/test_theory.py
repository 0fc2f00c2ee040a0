import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.mesa import CausalLinearAttention, Moments, ar_sequences, flow, limit_product, moments
from everyformer.papers.mesa.data import LAWS
from everyformer.papers.mesa.model import loss
from everyformer.papers.mesa.theory import limit_weights, mean_reciprocal

NAMES = st.sampled_from(sorted(set(LAWS) - {"ones"}))


@settings(max_examples=30, deadline=None)
@given(dim=st.integers(1, 10), length=st.integers(3, 200), scale=st.floats(0.2, 3))
def test_limits_known_by_hand(dim, length, scale):
    of = {law: limit_product(moments(law, dim, scale=scale), length) for law in ("sparse", "signs")}
    assert math.isclose(of["sparse"], 1 / scale**2)
    assert math.isclose(of["signs"], 1 / scale**2 / (1 + (dim - 1) * mean_reciprocal(length)))
    assert math.isclose(limit_product(moments("gaussian", dim, scale=scale)), 1 / (5 * scale**2))


def test_the_gaussian_limit_at_the_papers_size_is_four_percent_below_a_fifth():
    assert round(limit_product(moments("gaussian", 5), 100), 4) == 0.1919


@pytest.mark.parametrize("law", ["sparse", "signs", "uniform", "mixed"])
def test_the_closed_form_is_where_the_measured_loss_is_least(law):
    dim, length = 3, 8
    x = ar_sequences(law, dim, length, 40_000, 0)
    layer = CausalLinearAttention.from_product(1.0, 1.0, dim)
    with torch.no_grad():
        forecasts = layer(x)[:, :-1]
    # The loss of the product p is |p y - x|^2 / 2, least at <y, x> / <y, y>.
    best = (forecasts.conj() * x[:, 2:]).real.sum() / forecasts.abs().square().sum()
    theory = limit_product(moments(x[:, 0].real), length)
    assert abs(best / theory - 1) < 0.01
    assert (
        loss(torch.cat([theory * forecasts, x[:, :1]], dim=1), x) < loss(torch.cat([forecasts, x[:, :1]], dim=1), x) + 1
    )


@settings(max_examples=40, deadline=None)
@given(law=NAMES, a=st.floats(0.05, 4), b=st.floats(0.05, 4), dim=st.integers(1, 8), length=st.integers(3, 120))
def test_the_flow_conserves_and_ends_where_the_closed_form_says(law, a, b, dim, length):
    known = moments(law, dim)
    path = flow(a, b, known, length)
    scale = float((path.a**2 + path.b**2).max())
    assert float((path.difference - path.difference[0]).abs().max()) < 1e-4 * scale
    limit = limit_product(known, length)
    assert abs(path.product[-1] / limit - 1) < 1e-4
    ends = limit_weights(a, b, limit)
    assert math.isclose(ends[0] * ends[1], limit, rel_tol=1e-9)
    assert math.isclose(ends[0] ** 2 - ends[1] ** 2, a * a - b * b, rel_tol=1e-9, abs_tol=1e-9 * scale)
    torch.testing.assert_close(torch.stack([path.a[-1], path.b[-1]]), torch.tensor(ends).double(), atol=1e-3, rtol=1e-3)


def test_time_of_the_flow_is_rate_times_steps_of_descent():
    dim, length, rate, steps = 3, 10, 1e-3, 60
    known = moments("signs", dim)
    path = flow(0.2, 0.3, known, length, time=rate * steps)
    layer = CausalLinearAttention.from_product(0.2, 0.3, dim)
    optimiser = torch.optim.SGD(layer.parameters(), rate)
    for step in range(steps):
        x = ar_sequences("signs", dim, length, 500, step)
        optimiser.zero_grad()
        loss(layer(x), x).backward()
        optimiser.step()
    a, b = layer.diagonals()
    assert abs(a - path.a[-1]) < 0.01 and abs(b - path.b[-1]) < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a0": 0.0}, "a must be positive"),
        ({"b0": -1.0}, "b must be positive"),
        ({"length": 2}, "length must be at least 3"),
        ({"time": 0.0}, "time must be positive"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"a0": 0.1, "b0": 0.1, "moments": Moments(2, 1, 1, 1, 1, True), "length": 10, **change}
    with pytest.raises(ValueError, match=message):
        flow(**arguments)
