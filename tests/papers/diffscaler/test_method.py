import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from everyformer.papers.diffscaler.method import Affiner, Condition


def randomised(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


LAYERS = {
    "linear": lambda: (nn.Linear(6, 5), (2, 3, 6)),
    "linear without bias": lambda: (nn.Linear(6, 5, bias=False), (4, 6)),
    "convolution, strided": lambda: (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 8, 6)),
    "convolution, dilated, circular": lambda: (
        nn.Conv2d(3, 4, 3, dilation=2, padding=2, padding_mode="circular", bias=False),
        (2, 3, 8, 6),
    ),
    "convolution in groups": lambda: (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "convolution of sequences": lambda: (nn.Conv1d(3, 4, 2), (2, 3, 7)),
    "convolution of volumes": lambda: (nn.Conv3d(2, 4, (1, 2, 2)), (2, 2, 3, 4, 4)),
    "layer norm": lambda: (nn.LayerNorm(6), (2, 3, 6)),
    "layer norm without weights": lambda: (nn.LayerNorm(6, elementwise_affine=False), (2, 3, 6)),
    "layer norm of two axes": lambda: (nn.LayerNorm((3, 6)), (2, 3, 6)),
    "group norm": lambda: (nn.GroupNorm(2, 4), (2, 4, 3, 3)),
    "group norm without weights": lambda: (nn.GroupNorm(2, 4, affine=False), (2, 4, 3)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rank", [0, 3])
def test_a_task_starts_as_the_layer_and_folds_into_its_weights(kind, rank):
    layer, shape = LAYERS[kind]()
    layer, x = randomised(layer), torch.randn(shape)
    y = layer(x)
    assert torch.equal(Affiner(layer, rank=rank)(layer, x, y), y)
    task = randomised(Affiner(layer, rank=rank))
    wanted = task(layer, x, y)
    assert not torch.allclose(wanted, y)
    weight, bias = task.folded(layer)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    torch.testing.assert_close(layer(x), wanted, atol=1e-4, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 4), st.lists(st.integers(1, 4), max_size=2))
def test_the_equation_of_a_linear_layer(inputs, outputs, rank, leading):
    torch.manual_seed(0)
    layer, x = nn.Linear(inputs, outputs), torch.randn(*leading, inputs)
    task = randomised(Affiner(layer, rank=rank))
    expected = task.scale * layer(x) + task.shift
    if rank:
        expected = expected + x @ (task.up @ task.down).T
    torch.testing.assert_close(task(layer, x, layer(x)), expected, atol=1e-5, rtol=1e-4)


def test_the_equation_of_a_convolution():
    layer, x = nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 6, 6)
    task = randomised(Affiner(layer, rank=2))
    added = F.conv2d(F.conv2d(x, task.down, padding=1), task.up[:, :, None, None])
    expected = task.scale[:, None, None] * layer(x) + task.shift[:, None, None] + added
    torch.testing.assert_close(task(layer, x, layer(x)), expected, atol=1e-5, rtol=1e-4)


def test_norms_and_convolutions_in_groups_have_no_low_rank_part():
    for layer in (nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, groups=2)):
        assert set(Affiner(layer, rank=4).state_dict()) == {"scale", "shift"}
    assert set(Affiner(nn.Linear(4, 4), rank=0).state_dict()) == {"scale", "shift"}
    assert sum(p.numel() for p in Affiner(nn.Linear(10, 20), rank=3).parameters()) == 2 * 20 + 3 * 30


def test_a_task_of_fewer_classes_starts_without_a_class_and_keeps_that_label():
    layer = nn.Embedding(7, 4)
    task, labels = Condition(layer, classes=2), torch.tensor([0, 1, 6])
    assert torch.equal(task(layer, labels, layer(labels)), layer(torch.tensor([6, 6, 6])))
    randomised(task)
    wanted = task(layer, labels, layer(labels))
    assert torch.equal(wanted, task.table)
    with pytest.raises(IndexError):
        task(layer, torch.tensor([3]), layer(torch.tensor([3])))
    table, bias = task.folded(layer)
    assert bias is None
    assert torch.equal(table[labels], wanted)
    assert torch.equal(table[2:6], layer.weight[2:6])


def test_a_task_of_the_same_classes_starts_as_the_table():
    layer, labels = nn.Embedding(5, 4), torch.arange(5)
    assert torch.equal(Condition(layer)(layer, labels, layer(labels)), layer(labels))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Affiner(nn.Linear(2, 2), rank=-1), "rank must be at least 0, got -1"),
        (lambda: Affiner(nn.GELU()), "layer must be linear, a convolution, a LayerNorm or a GroupNorm, got GELU"),
        (lambda: Condition(nn.Embedding(5, 2), classes=5), "classes must be between 1 and 4, .* got 5"),
        (lambda: Condition(nn.Embedding(5, 2), classes=0), "classes must be between 1 and 4, .* got 0"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
