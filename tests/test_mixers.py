import pytest
import torch

from everyformer import mixers


def test_a_mixer_is_made_by_name():
    mixer = mixers.create("full", 32, heads=2, causal=True)
    assert mixer(torch.randn(2, 5, 32)).shape == (2, 5, 32)
    assert mixers.cards()["full"].kind is type(mixer)


def test_an_unknown_name_is_met_with_the_nearest():
    with pytest.raises(ValueError, match="full"):
        mixers.create("ful", 32)


@pytest.mark.parametrize("name", [None, 3, ["full"]])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="name must be that of a mixer, got"):
        mixers.create(name, 32)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"dim": 30}, "dim must be a multiple of heads"), ({"dim": 32, "heads": 0}, "dim must be a multiple of heads")],
)
def test_widths_that_do_not_divide_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        mixers.create("full", given.pop("dim"), **given)


def test_inputs_that_do_not_fit_are_refused():
    mixer = mixers.create("full", 32)
    with pytest.raises(ValueError, match=r"x must be \(batch, tokens, 32\)"):
        mixer(torch.randn(2, 5, 16))
    with pytest.raises(ValueError, match=r"mask must be \(2, 5\)"):
        mixer(torch.randn(2, 5, 32), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="cache must be None for FullAttention with causal=False"):
        mixer(torch.randn(2, 5, 32), cache={})
