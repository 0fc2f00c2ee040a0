import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from everyformer.papers.ts_survey import Decomposed, DLinear, Normalised, SeriesDecomposition


class Nothing(nn.Module):
    lookback, horizon = 30, 6

    def forward(self, series, marks=None, future=None):
        return series.new_zeros(len(series), 6, series.shape[2])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 7), st.integers(15, 40), st.integers(1, 3))
def test_the_trend_is_a_moving_average_with_repeated_ends(half, steps, variates):
    x = torch.randn(2, steps, variates)
    seasonal, trend = SeriesDecomposition(2 * half + 1)(x)
    torch.testing.assert_close(seasonal + trend, x)
    index = (torch.arange(steps)[:, None] + torch.arange(-half, half + 1)).clamp(0, steps - 1)
    torch.testing.assert_close(trend, x[:, index].mean(2), atol=1e-5, rtol=1e-4)


def test_several_windows_give_the_mean_of_their_trends():
    x = torch.randn(2, 30, 3)
    wanted = (SeriesDecomposition(3)(x)[1] + SeriesDecomposition(9)(x)[1]) / 2
    torch.testing.assert_close(SeriesDecomposition((3, 9))(x)[1], wanted)


def test_a_line_is_all_trend_but_at_its_ends():
    line = torch.arange(40.0)[None, :, None]
    assert SeriesDecomposition(11)(line)[0][:, 5:-5].abs().max() < 1e-4


@pytest.mark.parametrize("wrap", [Decomposed, Normalised])
def test_both_wrappers_carry_the_level(wrap):
    model, x = wrap(Nothing()), torch.randn(4, 30, 2)
    torch.testing.assert_close(model(x + 100) - model(x), torch.full((4, 6, 2), 100.0), atol=1e-3, rtol=1e-4)


def test_decomposed_shows_its_model_the_season():
    seen = []

    class Spy(Nothing):
        def forward(self, series, marks=None, future=None):
            seen.append((series, marks, future))
            return super().forward(series)

    x, marks, future = torch.randn(2, 30, 3), torch.randn(2, 30, 1), torch.randn(2, 6, 1)
    model = Decomposed(Spy(), kernel=7)
    model(x, marks, future)
    torch.testing.assert_close(seen[0][0], SeriesDecomposition(7)(x)[0])
    assert seen[0][1] is marks and seen[0][2] is future
    assert model.trend.weight.shape == (6, 30)


def test_dlinear_extends_a_constant():
    model = DLinear(30, 4)
    for part in (model.seasonal, model.trend):
        nn.init.zeros_(part.bias)
    torch.testing.assert_close(model(torch.full((1, 30, 2), 3.0)), torch.full((1, 4, 2), 3.0))


@pytest.mark.parametrize("kernel", [24, 0, -1, (), (3, 4)])
def test_a_window_that_is_even_or_below_one_is_named(kernel):
    with pytest.raises(ValueError, match="kernel must be odd and at least 1"):
        SeriesDecomposition(kernel)


def test_a_window_longer_than_the_input_is_named():
    with pytest.raises(ValueError, match=r"kernel must be at most the 20 steps of the series, got \(25,\)"):
        SeriesDecomposition()(torch.randn(1, 20, 1))
    with pytest.raises(ValueError, match="kernel must be at most lookback=30, got 31"):
        Decomposed(Nothing(), 31)


def test_what_is_no_forecaster_is_named():
    with pytest.raises(TypeError, match="model must have the attributes lookback and horizon"):
        Decomposed(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        Normalised(3)
