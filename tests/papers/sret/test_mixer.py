import pytest
import torch

from everyformer import mixers


def test_one_group_and_one_pass_are_full_attention():
    full, sliced = mixers.create("full", 32), mixers.create("sliced", 32, groups=1, loops=1)
    sliced.load_state_dict(full.state_dict())
    x = torch.randn(2, 21, 32)
    torch.testing.assert_close(sliced(x), full(x))


def test_the_first_pass_stays_in_its_slice_and_the_second_leaves_it():
    x = torch.randn(1, 22, 32)
    other = x.clone()
    other[:, 0] += 1
    once, twice = (mixers.create("sliced", 32, groups=2, loops=loops) for loops in (1, 2))
    reached = ((once(other) - once(x)).abs().sum((0, 2)) > 1e-6).tolist()
    assert reached == [True] * 11 + [False] * 11
    assert ((twice(other) - twice(x)).abs().sum((0, 2)) > 1e-6).all()


def test_what_fills_up_is_not_seen():
    full, sliced = mixers.create("full", 32), mixers.create("sliced", 32, groups=2, loops=1)
    sliced.load_state_dict(full.state_dict())
    x = torch.randn(2, 7, 32)  # groups of four, the last one short
    torch.testing.assert_close(sliced(x)[:, 4:], full(x[:, 4:]))


@pytest.mark.parametrize("given", [{"groups": 0}, {"loops": 0}])
def test_numbers_below_one_are_refused(given):
    with pytest.raises(ValueError, match="groups and loops must be at least 1"):
        mixers.create("sliced", 32, **given)
