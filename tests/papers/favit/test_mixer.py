import pytest
import torch

from everyformer import mixers


def test_every_token_sees_every_other():
    mixer, x = mixers.create("fasa", 32, window=4, reduction=4), torch.randn(1, 50, 32)
    for place in (0, 23, 49):
        other = x.clone()
        other[:, place] += 1
        assert ((mixer(other) - mixer(x)).abs().sum((0, 2)) > 1e-7).all()


def test_fused_keys_are_means_over_runs():
    mixer = mixers.create("fasa", 16, heads=1, window=3, reduction=2)
    mixer.across[0], mixer.keys_values[0] = torch.nn.Identity(), torch.nn.Linear(7, 14, bias=False)
    torch.nn.init.eye_(mixer.keys_values[0].weight)
    x = torch.randn(1, 1, 12, 7)  # four windows of three
    key, _ = mixer._fused(x, 0, 1)
    # At each place: 4 x 7 numbers, window after window, in seven runs of four.
    expected = torch.stack([x[0, 0, place::3].flatten().view(7, 4).mean(1) for place in range(3)])
    torch.testing.assert_close(key[0, 0], expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"window": 0}, "window must be at least 1 and reduction 2"),
        ({"reduction": 1}, "window must be at least 1 and reduction 2"),
        ({"heads": 16}, "dim / heads must be at least 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        mixers.create("fasa", 32, **given)
