import copy
import itertools

import pytest
import torch
from torch import nn

from everyformer.lab.measure import count_parameters, peak_extra_bytes
from everyformer.papers.faster_lighter import (
    Reversible,
    ReversibleSequence,
    backward_in_parts,
    checkpoint_layers,
    share,
)


def blocks(depth, dim=8, dropout=0.0, dtype=torch.float64):
    def function():
        return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout)).to(dtype)

    return [Reversible(function(), function()) for _ in range(depth)]


def plainly(model, left, right):
    for block in model.blocks:
        left, right = block(left, right)
    return left, right


def gradients(run, model, *halves):
    model.zero_grad()
    inputs = [half.clone().requires_grad_() for half in halves]
    left, right = run(*inputs)
    (left.square().sum() + (right * left.detach()).sum()).backward()
    return [left, right, *(part.grad for part in (*inputs, *model.parameters()))]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_reversible_blocks_give_the_values_and_gradients_of_autograd(dropout):
    model = ReversibleSequence(blocks(4, dropout=dropout))
    halves = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    torch.manual_seed(1)
    wanted = gradients(lambda left, right: plainly(model, left, right), model, *halves)
    torch.manual_seed(1)
    given = gradients(model, model, *halves)
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_random_state_afterwards_is_that_of_one_pass():
    model, halves = ReversibleSequence(blocks(2, dropout=0.5)), torch.randn(2, 3, 8, dtype=torch.float64)
    after = []
    for run in (model, lambda left, right: plainly(model, left, right)):
        torch.manual_seed(0)
        gradients(run, model, *halves)
        after.append(torch.rand(1))
    assert torch.equal(*after)


def test_gradients_agree_with_finite_differences():
    model = ReversibleSequence(blocks(2, dim=3))
    halves = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(model, halves)


def test_shared_and_frozen_weights_get_what_autograd_gives_them():
    first, second, third = blocks(3)
    third.first = first.first  # a function that is used twice
    second.second.requires_grad_(False)
    model = ReversibleSequence([first, second, third])
    halves = torch.randn(2, 3, 8, dtype=torch.float64)
    wanted = gradients(lambda left, right: plainly(model, left, right), model, *halves)
    for one, other in itertools.zip_longest(gradients(model, model, *halves), wanted):
        assert (one is None and other is None) or torch.allclose(one, other)


def test_memory_of_reversible_blocks_hardly_grows_with_depth():
    def peak(depth, run_of):
        model = ReversibleSequence(blocks(depth, dim=16, dtype=torch.float32))
        halves = torch.randn(2, 4, 256, 16)

        def step():
            model.zero_grad(set_to_none=True)
            left, right = run_of(model)(*halves)
            (left.sum() + right.sum()).backward()

        return peak_extra_bytes(step)

    reversible = [peak(depth, lambda model: model) for depth in (4, 16)]
    kept = [peak(depth, lambda model: lambda left, right: plainly(model, left, right)) for depth in (4, 16)]
    assert reversible[1] < 1.3 * reversible[0] and kept[1] > 3 * kept[0]
    assert kept[1] > 5 * reversible[1]


def test_reversible_blocks_run_in_bfloat16_and_compiled():
    model = ReversibleSequence(blocks(2, dtype=torch.float32))
    halves = torch.randn(2, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        given = gradients(model, model, *halves)
        wanted = gradients(lambda left, right: plainly(model, left, right), model, *halves)
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)
    compiled = gradients(torch.compile(model, backend="aot_eager"), model, *halves)
    for one, other in zip(compiled, gradients(model, model, *halves), strict=True):
        torch.testing.assert_close(one, other)


def test_checkpointed_layers_change_nothing_but_memory():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(8)))
    light = copy.deepcopy(model)
    assert checkpoint_layers(light, nn.GELU) == 8 and checkpoint_layers(light, nn.GELU) == 8
    assert list(light.state_dict()) == list(model.state_dict())
    x = torch.randn(512, 16)
    for one in (model, light):
        one(x).square().sum().backward()
    for a, b in zip(model.parameters(), light.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert isinstance(light[0][1], nn.GELU) and torch.equal(copy.deepcopy(light)(x), model(x))
    with torch.no_grad():
        assert torch.equal(light(x), model(x))


def test_checkpointed_blocks_keep_their_inputs_only():
    def peak(checkpointed):
        layers = [nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(8)]
        model = nn.Sequential(nn.Sequential(*layers))
        if checkpointed:
            for layer in layers:
                checkpoint_layers(layer, nn.Sequential)
        x = torch.randn(2048, 16)
        return peak_extra_bytes(lambda: model(x).square().sum().backward())

    assert peak(True) < 0.4 * peak(False)


def test_shared_layers_count_once():
    layers = [nn.Linear(4, 4) for _ in range(6)]
    model = nn.Sequential(*share(layers, 2))
    assert count_parameters(model) == 2 * 20 and len(model) == 6
    assert [model[index] is layers[index % 2] for index in range(6)] == [True] * 6
    x = torch.randn(3, 4)
    wanted = x
    for index in range(6):
        wanted = layers[index % 2](wanted)
    assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("size", [1, 3, 10, 100])
def test_gradients_in_parts_are_those_of_the_whole(size):
    model = nn.Linear(4, 1)
    inputs, targets = torch.randn(10, 4), torch.randn(10, 1)

    def loss(x, y):
        return (model(x) - y).square().mean()

    whole = loss(inputs, targets)
    whole.backward()
    wanted = model.weight.grad.clone()
    model.zero_grad()
    torch.testing.assert_close(backward_in_parts(loss, inputs, targets, size), whole.detach())
    torch.testing.assert_close(model.weight.grad, wanted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ReversibleSequence([]), "blocks must be one or more Reversible"),
        (lambda: ReversibleSequence([nn.Linear(2, 2)]), r"blocks must be one or more Reversible, got \['Linear'\]"),
        (
            lambda: ReversibleSequence(blocks(1))(torch.zeros(2, 8), torch.zeros(3, 8)),
            r"left and right must have one shape, got \(2, 8\) and \(3, 8\)",
        ),
        (lambda: checkpoint_layers(nn.Linear(2, 2), nn.GELU), "kind must be that of a layer of the model"),
        (lambda: share([nn.Linear(2, 2)], 2), "distinct must be 1 to 1, got 2"),
        (lambda: share([nn.Linear(2, 2), nn.Linear(2, 3)], 1), "layers must have weights of the same shapes; 1 and 0"),
        (lambda: backward_in_parts(lambda x, y: x, torch.zeros(2), torch.zeros(2), 0), "size must be at least 1, got 0"),
        (lambda: backward_in_parts(lambda x, y: x, torch.zeros(2), torch.zeros(3), 1), "as many and not none, got 2 and 3"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
