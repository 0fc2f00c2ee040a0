import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.uat import ridge
from everyformer.papers.uat.target import lattice, scattered


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 12))
def test_directions_are_counted_without_being_made(inputs, k):
    span = torch.arange(-k, k + 1)
    w = torch.cartesian_prod(*[span] * inputs).reshape(-1, inputs).tolist()
    assert ridge.frequencies(inputs, k) == sum(math.gcd(*v) == 1 for v in w) // 2


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99))
def test_profiles_become_the_network_that_interpolates_them(inputs, pieces, outputs, seed):
    torch.manual_seed(seed)
    directions = torch.randint(-3, 4, (4, inputs)).double()
    directions[:, 0] += 5
    values = torch.randn(4, pieces + 1, outputs, dtype=torch.float64)
    net = ridge.from_profiles(directions, values)
    x = torch.rand(50, inputs, dtype=torch.float64)
    expected = (ridge.hats(x, directions, pieces) @ values.flatten(0, 1)).reshape(50, outputs)
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 2), st.integers(1, 20), st.integers(0, 99))
def test_the_closed_form_is_within_its_bound_for_random_lipschitz_maps(inputs, k, seed):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(5, inputs, generator=generator, dtype=torch.float64)

    def cones(x):  # Lipschitz with constant 1 in the 1-norm, with kinks everywhere
        return (x[:, None] - centres).abs().sum(-1).amin(-1, keepdim=True)

    net, knots = ridge.closed_form(cones, inputs, k, 0.05, math.inf, 1)
    assert knots <= 0.05 + 1e-12
    x = torch.cat([lattice(inputs, 900), scattered(500, inputs)])
    error = (net(x) - cones(x)).abs().max()
    assert error <= ridge.truncation(1.0, torch.ones(inputs), k) + knots + 1e-9


def test_knots_cost_what_the_bound_says_they_may():
    def wave(x):
        return torch.cos(math.pi * (x @ torch.tensor([[2.0], [1.0]], dtype=torch.float64)))

    x = scattered(2000, 2)
    fine, _ = ridge.closed_form(wave, 2, 6, 1e-4, math.inf, 1)
    for budget in (0.3, 0.03, 0.003):
        coarse, knots = ridge.closed_form(wave, 2, 6, budget, math.inf, 1)
        assert (coarse(x) - fine(x)).abs().max() <= knots + 1e-4
        assert knots <= budget


def test_the_degree_is_the_smallest_that_does():
    sides = torch.ones(2)
    for lipschitz, epsilon in ((1.0, 0.3), (3.0, 0.1), (0.2, 0.03), (0.0, 0.1)):
        k = ridge.degree(lipschitz, sides, epsilon)
        assert ridge.truncation(lipschitz, sides, k) <= ridge.TRUNCATION * epsilon + 1e-12
        assert k == 1 or ridge.truncation(lipschitz, sides, k - 1) > ridge.TRUNCATION * epsilon


def test_pruning_changes_no_more_than_it_says():
    torch.manual_seed(0)
    net = ridge.Ridge(torch.randn(40, 2).double(), torch.randn(40).double(), 0.1 * torch.randn(40, 3).double(),
                      torch.randn(2, 3).double(), torch.randn(3).double())  # fmt: skip
    smaller, dropped = net.pruned(0.2)
    x = torch.rand(1000, 2, dtype=torch.float64)
    assert smaller.width < net.width
    assert (smaller(x) - net(x)).abs().max() <= dropped + 1e-12 <= 0.2 + 1e-12


def test_still_directions_get_no_neurons():
    x = torch.rand(500, 3, dtype=torch.float64)
    slopes = torch.stack([torch.cos(x[:, 0] - x[:, 1]), -torch.cos(x[:, 0] - x[:, 1]), torch.ones(500).double()], 1)
    still = ridge.active(slopes[..., None])
    assert still.shape == (3, 2)
    assert [len(s) for s in ridge.shells(still, 10)] == [0, 1]
    assert len(ridge.shells(torch.eye(3).double(), 10)) == 1


@pytest.mark.parametrize("inputs", [1, 2, 3, 5])
def test_shells_grow_and_hold_no_direction_twice(inputs):
    sets = ridge.shells(torch.zeros(inputs, 0, dtype=torch.float64), 40)
    assert len(sets[0]) == 0 and len(sets[1]) >= inputs
    for smaller, larger in itertools.pairwise(sets):
        assert len(smaller) < len(larger) <= 40
    both = torch.cat([sets[-1], -sets[-1]])
    assert len(both.unique(dim=0)) == len(both)
