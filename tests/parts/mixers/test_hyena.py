import pytest
import torch

from everyformer.parts.mixers.hyena import Hyena, long_convolution


def test_the_long_convolution_is_the_sum_it_stands_for():
    x, response = torch.randn(2, 23, 3, dtype=torch.float64), torch.randn(23, 3, dtype=torch.float64)
    expected = torch.stack(
        [sum(response[place - past] * x[:, past] for past in range(place + 1)) for place in range(23)], dim=1
    )
    torch.testing.assert_close(long_convolution(x, response), expected)


def test_a_filter_is_a_function_of_distance():
    mixer = Hyena(16)
    torch.testing.assert_close(mixer.filter(50)[:20], mixer.filter(20))
    assert mixer.filter(50).std(0).min() > 0


def test_a_hidden_width_below_one_is_refused():
    with pytest.raises(ValueError, match="hidden must be at least 1"):
        Hyena(16, hidden=0)
