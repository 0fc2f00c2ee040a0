import copy

import pytest
import torch
from torch import nn

from everyformer.papers.qsched import quantise
from everyformer.parts.dit import DiT


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_are_the_nearest_of_few_levels_in_each_group(bits):
    layer = nn.Sequential(nn.Linear(64, 8, bias=False))
    weight = layer[0].weight.detach().clone().unflatten(1, (2, 32))
    quantise(layer, weights=bits, activations=16)
    got = layer(torch.eye(64)).T.unflatten(1, (2, 32))
    level = weight.abs().amax(-1, keepdim=True) / ((2**bits - 1) / 2)
    torch.testing.assert_close(got / level, (got / level).round(), atol=1e-4, rtol=0)
    assert ((got - weight).abs() <= level * 0.5001).all()
    assert (got / level).min() >= -(2 ** (bits - 1)) - 1e-4 and (got / level).max() <= 2 ** (bits - 1) - 1 + 1e-4


def test_activations_in_8_bits_are_rounded_too():
    layer = nn.Sequential(nn.Linear(64, 8))
    x = torch.randn(5, 64)
    both, weights_only = (quantise(copy.deepcopy(layer), activations=bits)(x) for bits in (8, 16))
    error = (both - weights_only).abs().max()
    assert 0 < error < 0.05


def test_a_model_in_few_bits_is_near_and_nearer_with_more():
    torch.manual_seed(0)
    model = DiT(image_size=8, patch=2, channels=1, dim=32, depth=2, heads=2, classes=10)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 500.0]), torch.tensor([1, 2])
    with torch.no_grad():
        expected = model(*inputs)
        errors = [
            (quantise(copy.deepcopy(model), weights=bits)(*inputs) - expected).norm() / expected.norm()
            for bits in (8, 4, 2)
        ]
        kept = quantise(copy.deepcopy(model), keep=lambda name: not name.startswith("blocks.0.mlp"))
    assert errors[0] < 0.05 < errors[1] * 2 < errors[2] * 2
    assert type(kept.final.weight) is nn.Parameter and type(kept.blocks[0].mlp[0].weight) is not nn.Parameter


def test_what_cannot_be_quantised():
    layer = nn.Sequential(nn.Linear(64, 8))
    with pytest.raises(ValueError, match=r"weights must be one of .* bits, got 3.5"):
        quantise(layer, weights=3.5)
    with pytest.raises(ValueError, match="activations must be one of"):
        quantise(layer, activations=4)
    with pytest.raises(ValueError, match="divisible by group=32, got none"):
        quantise(nn.Sequential(nn.Linear(30, 8)))
