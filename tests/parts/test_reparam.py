import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath
from timm.utils import reparameterize_model
from torch import nn

from everyformer.lab.measure import count_flops
from everyformer.parts.reparam import RepConv2d, chained, regrouped, reparameterize


def lived_in(module):
    """Statistics, scales and shifts as a training leaves them."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return module.eval()


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
    groups=st.lists(st.sampled_from([1, 2, 4, 12]), min_size=1, max_size=3),
    outside=st.sampled_from([12, 24]),
    residual=st.booleans(),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_folding_leaves_the_outputs(kernel, stride, groups, outside, residual, size):
    residual = residual and outside == 12 and stride == 1
    module = lived_in(RepConv2d(12, outside, kernel, stride, groups, residual)).double()
    x = torch.randn(2, 12, *size, dtype=torch.double)
    before = module(x)
    module.reparameterize()
    torch.testing.assert_close(module(x), before)
    assert [type(child) for child in module.children()] == [nn.Conv2d]
    assert module.conv.groups == math.gcd(*groups)
    module.reparameterize()
    torch.testing.assert_close(module(x), before)


def test_the_folded_convolution_has_the_groups_all_branches_allow_and_fewer_operations():
    x = torch.randn(1, 16, 8, 8)
    for groups, expected in (((4, 16), 4), ((16,), 16), ((1, 4), 1), ((4, 8), 4)):
        module = lived_in(RepConv2d(16, 16, 3, groups=groups))
        before = count_flops(lambda module=module: module(x))
        module.reparameterize()
        assert module.conv.groups == expected
        assert count_flops(lambda module=module: module(x)) < before


def test_widened_groups_compute_the_same():
    conv = nn.Conv2d(12, 24, 3, padding=1, groups=6, bias=False)
    x = torch.randn(1, 12, 5, 5)
    for fewer in (1, 2, 3, 6):
        wider = nn.Conv2d(12, 24, 3, padding=1, groups=fewer, bias=False)
        wider.weight = nn.Parameter(regrouped(conv.weight, 6, fewer))
        torch.testing.assert_close(wider(x), conv(x))
    with pytest.raises(ValueError, match="fewer must divide groups=6, got 4"):
        regrouped(conv.weight, 6, 4)


@pytest.mark.parametrize(("inside", "led"), [(8, 8), (5, 12)])
def test_two_pointwise_convolutions_become_one(inside, led):
    first, second, x = nn.Conv2d(inside, led, 1), nn.Conv2d(12, 7, 1), torch.randn(2, inside + 12 - led, 3, 3)
    expected = second(torch.cat([first(x[:, :inside]), x[:, inside:]], dim=1))
    torch.testing.assert_close(chained(first, second)(x), expected)
    with pytest.raises(ValueError, match="first must be a 1 x 1 convolution with bias"):
        chained(nn.Conv2d(8, 8, 3), second)
    with pytest.raises(ValueError, match="second must read the 13 channels of first, got 12"):
        chained(nn.Conv2d(8, 13, 1), second)


def test_timm_folds_it_too_and_keeps_the_original():
    model = lived_in(nn.Sequential(RepConv2d(4, 8, 3, 2), nn.ReLU(), nn.Sequential(RepConv2d(8, 8, 3, residual=True))))
    x = torch.randn(2, 4, 6, 6)
    folded = reparameterize_model(model)
    torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-5)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert reparameterize(model) is model
    torch.testing.assert_close(model(x), folded(x), rtol=0, atol=0)


def test_dropped_branches_leave_the_residual():
    module = RepConv2d(4, 4, 3, residual=True, drop=DropPath(1.0 - 1e-7))
    x = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(module.train()(x), x)


def test_it_keeps_type_and_place_and_computes_in_bf16():
    module = lived_in(RepConv2d(4, 8, 3)).to(torch.bfloat16)
    module.reparameterize()
    assert module.conv.weight.dtype == torch.bfloat16
    assert module(torch.randn(1, 4, 5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 2}, "kernel must be odd, got 2"),
        ({"groups": (3,)}, r"groups must divide inside=4 and outside=8, got \(3,\)"),
        ({"groups": ()}, "groups must divide"),
        ({"residual": True}, "residual needs equal shapes, got 4 to 8 channels with stride 1"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        RepConv2d(4, 8, **options)
