import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from everyformer.papers.itransformer import (
    DLinear,
    ITransformer,
    VanillaTransformer,
    flow_attention,
    invert,
    prob_attention,
)


def small(**options):
    sizes = {"lookback": 12, "horizon": 5, "dim": 16, "heads": 2, "layers": 2, "ff": 24, "dropout": 0.0}
    return ITransformer(**{**sizes, **options})


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(0, 4),
    st.integers(0, 2),
    st.sampled_from(["full", "flow", "prob"]),
)
def test_any_number_of_variates_marks_and_future_covariates(batch, variates, marks, future, attention):
    model = small(marks=marks, future=future, attention=attention)
    given_marks = torch.randn(batch, 12, marks) if marks else None
    given_future = torch.randn(batch, 5, future) if future else None
    assert model(torch.randn(batch, 12, variates), given_marks, given_future).shape == (batch, 5, variates)


def test_permuted_variates_give_permuted_forecasts():
    model, x, order = small(), torch.randn(2, 12, 6), torch.randperm(6)
    torch.testing.assert_close(model(x[..., order]), model(x)[..., order])


def test_normalisation_carries_level_and_scale_through():
    model, x = small(), torch.randn(2, 12, 3)
    torch.testing.assert_close(model(100 * x + 7), 100 * model(x) + 7, atol=1e-2, rtol=1e-3)


def test_attention_maps_are_distributions_over_tokens():
    model, x = small(marks=2), torch.randn(2, 12, 3)
    _, maps = model(x, torch.randn(2, 12, 2), return_attention=True)
    assert [tuple(m.shape) for m in maps] == [(2, 2, 5, 5)] * 2
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(2, 2, 5))


def test_asking_for_the_maps_changes_no_forecast():
    model, x = small(), torch.randn(2, 12, 3)
    torch.testing.assert_close(model(x, return_attention=True)[0], model(x))


def test_gradients_reach_the_input_and_every_weight():
    model, x = small(marks=1), torch.randn(2, 12, 3, requires_grad=True)
    model(x, torch.randn(2, 12, 1)).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "build", [small, lambda: VanillaTransformer(12, 5, 3, dim=16, heads=2, ff=24, label=6, dropout=0.0)]
)
def test_it_compiles_runs_in_bf16_and_reloads_strictly(build):
    torch.manual_seed(0)
    model, x = build(), torch.randn(2, 12, 3)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), atol=1e-5, rtol=1e-4)
    again = build()
    again.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(again(x), model(x))
    assert model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


def test_invert_makes_a_forecaster_of_any_token_model():
    build = invert(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 1))
    assert build(lookback=12, horizon=5, dim=16)(torch.randn(2, 12, 4)).shape == (2, 5, 4)
    with pytest.raises(TypeError, match="factory must be callable"):
        invert(3)
    with pytest.raises(TypeError, match="factory must give a torch"):
        invert(lambda: 3)(lookback=12, horizon=5, dim=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"lookback": 0}, "lookback must be at least 1"),
        ({"heads": 3}, "dim must be a multiple of heads"),
        ({"marks": -1}, "marks must be at least 0"),
        ({"attention": "magic"}, "attention must be one of"),
        ({"activation": "tanh"}, "activation must be one of"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_inputs_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"series must have shape \(batch, 12, variates\), got \(2, 11, 3\)"):
        small()(torch.randn(2, 11, 3))
    with pytest.raises(ValueError, match="marks must have shape"):
        small(marks=2)(torch.randn(2, 12, 3))
    with pytest.raises(ValueError, match="marks must be None"):
        small()(torch.randn(2, 12, 3), torch.randn(2, 12, 1))


def test_prob_attention_is_exact_when_every_query_is_chosen():
    query, key, value = torch.randn(3, 1, 2, 9, 4)
    full = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(prob_attention(query, key, value, factor=9), full)


def test_prob_attention_gives_the_rest_the_mean_value():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 1, 40, 4)
    out = prob_attention(query, key, value)
    mean = (out - value.mean(-2, keepdim=True)).abs().sum(-1) < 1e-6
    assert mean.sum() == 40 - math.ceil(math.log(40))


def test_flow_attention_conserves_a_constant_value():
    query, key = torch.randn(2, 1, 2, 7, 4)
    out = flow_attention(query, key, torch.ones(1, 2, 7, 3))
    torch.testing.assert_close(out[..., 0], out[..., 1])


def test_dlinear_starts_as_an_average_and_extends_a_constant():
    model = DLinear(30, 4)
    for part in (model.seasonal, model.trend):
        nn.init.zeros_(part.bias)
    torch.testing.assert_close(model(torch.full((1, 30, 2), 3.0)), torch.full((1, 4, 2), 3.0))
    with pytest.raises(ValueError, match="kernel must be odd"):
        DLinear(30, 4, kernel=4)
