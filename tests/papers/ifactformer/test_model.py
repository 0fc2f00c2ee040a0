import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from everyformer import create_model
from everyformer.lab.measure import count_flops, count_parameters
from everyformer.papers.ifactformer import FactorizedAttention, IFactFormer, ifactformer_m, ifactformer_o
from everyformer.papers.ifactformer.model import along

SMALL = {"dim": 12, "heads": 2, "head_dim": 4, "iterations": 2}


def axes(grid):
    return [torch.rand(points).sort().values for points in grid]


def busy(module):
    """Kernels as a training makes them, far from zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(1, 3), grid=st.lists(st.integers(1, 6), min_size=2, max_size=3), window=st.integers(1, 3),
    depth=st.integers(1, 2), attention=st.sampled_from(["parallel", "chained"]),
)  # fmt: skip
def test_a_window_goes_in_and_a_field_comes_out(batch, grid, window, depth, attention):
    model = IFactFormer(
        in_channels=3, out_channels=4, depth=depth, dims=len(grid), attention=attention, time_window=window, **SMALL
    )
    u = torch.randn(batch, window, *grid, 3)
    before = u.clone()
    output = model(u, axes(grid))
    assert output.shape == (batch, *grid, 4)
    assert output.isfinite().all()
    assert torch.equal(u, before)  # the position code is not added to the caller's tensor


@pytest.mark.parametrize("attention", ["parallel", "chained"])
@pytest.mark.parametrize("grid", [(5, 4), (4, 3, 5)])
def test_the_block_is_what_its_equations_say(attention, grid):
    """Every step spelled out on the whole grid: projected, then averaged; summed by einsum; normed by torch."""
    dims, heads, width, dim = len(grid), 2, 4, 12
    block = busy(FactorizedAttention(dim, heads=heads, head_dim=width, dims=dims, attention=attention)).double()
    x, where = torch.randn(2, *grid, dim, dtype=torch.double, requires_grad=True), axes(grid)
    found = block(x, where)

    normed = block.norm(x)
    value = block.value(normed).unflatten(-1, (heads, width)).movedim(-2, 1)
    kernels = []
    for axis, part in enumerate(block.axes):
        whole = part.enter(block.shared(normed)).movedim(axis + 1, 1)
        gate, content = part.gated(part.norm(whole.mean(list(range(2, dims + 1))))).chunk(2, -1)
        summary = part.leave(nn.functional.gelu(gate) * content)
        angle = 64 * where[axis].float()[:, None] * 10_000 ** -(torch.arange(0, 3 * width, 2) / (3 * width))
        turn = torch.polar(torch.ones_like(angle.double()), angle.double())

        def turned(y, turn=turn):
            first, second = y.unflatten(-1, (heads, -1)).transpose(1, 2).chunk(2, -1)
            return torch.complex(first, second) * turn

        kernels.append((turned(part.query(summary)) @ turned(part.key(summary)).mH).real)
    names = "ijk"[:dims]
    mixed, results = value, []
    for axis, kernel in enumerate(kernels):
        rule = f"bhn{names[axis]},bh{names}c->bh{names.replace(names[axis], 'n')}c"
        mixed = torch.einsum(rule, kernel, mixed if attention == "chained" else value)
        results.append(mixed)
    wide = torch.cat(results, -1) if attention == "parallel" else mixed
    wide = nn.functional.instance_norm(wide.movedim(-1, 2).flatten(1, 2)).movedim(1, -1)
    expected = block.out(nn.functional.gelu(block.mix(wide)))

    for kernel, own in zip(kernels, block.kernels(x, where), strict=True):
        torch.testing.assert_close(own, kernel, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(found)
    gradients = [torch.autograd.grad((output * weight).sum(), x, retain_graph=True)[0] for output in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sums_along_an_axis(axis):
    grid = (3, 4, 5)
    kernel, value = torch.randn(2, 2, grid[axis], grid[axis]), torch.randn(2, 2, *grid, 6)
    less = torch.randn(2, 2, 1, 6)
    expected = torch.einsum("bhnm,bhm...->bhn...", kernel, value.movedim(axis + 2, 2)).movedim(2, axis + 2)
    torch.testing.assert_close(along(kernel, value, axis), expected)
    torch.testing.assert_close(along(kernel, value, axis, less=less), expected - less[:, :, :, None, None])


def test_axes_side_by_side_do_not_depend_on_each_others_kernels():
    """Of a change of one axis's kernel, the chained form carries all along; the parallel one a part."""
    grid, where = (5, 6), axes((5, 6))
    x = torch.randn(1, *grid, 12)
    for attention, kept in (("parallel", True), ("chained", False)):
        block = busy(FactorizedAttention(12, heads=2, head_dim=4, dims=2, attention=attention))
        with torch.no_grad():
            block.axes[1].query.weight.zero_()
        assert bool(block(x, where).any()) is kept  # the other axis still speaks, or nothing does
        assert not block.kernels(x, where)[1].any()


def test_only_differences_of_coordinates_turn_kernels():
    block = busy(FactorizedAttention(12, heads=2, head_dim=4, dims=2)).double()
    x, where = torch.randn(1, 5, 6, 12, dtype=torch.double), axes((5, 6))
    moved = [points + 0.25 for points in where]
    for first, second in zip(block.kernels(x, where), block.kernels(x, moved), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


def test_published_sizes():
    for build, trained in ((ifactformer_m, 1_163_187), (ifactformer_o, 1_071_027)):
        with torch.device("meta"):
            assert count_parameters(build()) == trained
    with torch.device("meta"):
        assert create_model("ifactformer_m", iterations=2).iterations == 2


def test_the_cost_is_linear_in_the_number_of_points_and_the_length_of_an_axis():
    def flops(points):
        block = FactorizedAttention(12, heads=2, head_dim=4, dims=2)
        x, where = torch.randn(1, points, 16, 12), axes((points, 16))
        return count_flops(lambda: block(x, where))

    one, two, four = (flops(points) for points in (64, 128, 256))
    # A quadratic form: the linear part of the points, and the kernel of the long axis times its length.
    assert four - 2 * two == pytest.approx(4 * (two - 2 * one), rel=0.1)
    assert four < 16 * one


@pytest.mark.parametrize("attention", ["parallel", "chained"])
def test_it_compiles_in_half_precision_and_its_state_goes_round(attention):
    model, grid = busy(IFactFormer(attention=attention, dims=2, **SMALL)), (6, 5)
    u, where = torch.randn(2, 1, *grid, 3), axes(grid)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(u, where), model(u, where), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(u, where)
    assert nn.functional.cosine_similarity(half.float().flatten(), model(u, where).flatten(), dim=0) > 0.98
    again = IFactFormer(attention=attention, dims=2, **SMALL)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(u, where), model(u, where))


def test_all_weights_learn():
    model = IFactFormer(dims=2, **SMALL)
    model(torch.randn(1, 1, 5, 6, 3), axes((5, 6))).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10}, "dim / 2 must be divisible by in_channels, got dim=10 and in_channels=3"),
        ({"head_dim": 3}, "head_dim must be even for rotary positions, got 3"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"dims": 4}, "dims must be 2 or 3, got 4"),
        ({"attention": "serial"}, "attention must be 'parallel' or 'chained', got 'serial'"),
    ],
)
def test_sizes_that_cannot_be_used_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        IFactFormer(**{**SMALL, **options})


@pytest.mark.parametrize(
    ("shape", "grid", "message"),
    [
        ((1, 1, 4, 5, 3), (4, 5, 6), r"u must be \(batch, 1, x, y, z, 3\), got \(1, 1, 4, 5, 3\)"),
        ((1, 2, 4, 5, 6, 3), (4, 5, 6), r"u must be \(batch, 1, x, y, z, 3\), got \(1, 2, 4"),
        ((1, 1, 4, 5, 6, 3), (4, 5, 7), r"for each axis of the grid \(4, 5, 6\), got \[\(4,\), \(5,\), \(7,\)\]"),
        ((1, 1, 4, 5, 6, 3), (4, 5), r"for each axis of the grid \(4, 5, 6\), got \[\(4,\), \(5,\)\]"),
    ],
)
def test_fields_that_do_not_fit_are_named(shape, grid, message):
    with pytest.raises(ValueError, match=message):
        IFactFormer(**SMALL)(torch.zeros(shape), axes(grid))
    with pytest.raises(ValueError, match="the field must be"):
        FactorizedAttention(12, heads=2, head_dim=4)(torch.zeros(1, 4, 5, 12), axes((4, 5)))


def test_the_instance_norm_needs_its_eps_at_the_start():
    """Kernels start near zero: the mixed values are far smaller than sqrt(eps), and are not blown up to deviation 1."""
    block = FactorizedAttention(12, heads=2, head_dim=4, dims=2)
    x, where = torch.randn(1, 8, 8, 12), axes((8, 8))
    kernel = block.kernels(x, where)[0]
    assert 0 < kernel.abs().max() < 0.01
    assert block(x, where).abs().max() < math.sqrt(0.1)
