"""The transform against its equations, closed forms and PyWavelets, and its inverse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.ops.dwt import dwt2d, haar2d, haar_split, idwt2d, ihaar2d, reference
from everyformer.ops.dwt.filters import MODES, analysis_filters

try:
    import pywt
except ImportError:  # the equations are checked all the same
    pywt = None

WAVELETS = ["haar", *(f"db{order}" for order in range(1, 9))]


def same(ours, right, **tolerance):
    torch.testing.assert_close(ours[0], right[0], **tolerance)
    assert len(ours[1]) == len(right[1])
    for mine, its in zip(ours[1], right[1], strict=True):
        torch.testing.assert_close(mine, its, **tolerance)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_haar_is_the_equations_and_inverts(batch, channels, levels, rows, columns):
    x = torch.randn(batch, channels, rows * 2**levels, columns * 2**levels, requires_grad=True)
    ours, right = haar2d(x, levels), reference.haar2d(x, levels)
    same(ours, right, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ihaar2d(*ours), x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reference.ihaar2d(*right), x, atol=1e-5, rtol=1e-5)
    energy = ours[0].square().sum() + sum(high.square().sum() for high in ours[1])
    torch.testing.assert_close(energy, x.square().sum())
    weights = [torch.randn_like(part) for part in (ours[0], *ours[1])]
    grads = [
        torch.autograd.grad(sum((part * w).sum() for part, w in zip((low, *highs), weights, strict=True)), x)[0]
        for low, highs in (ours, right)
    ]
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=1e-5)


def test_haar_of_one_cell_in_closed_form():
    low, (high,) = haar2d(torch.tensor([[[[1.0, 2.0], [3.0, 5.0]]]]))
    assert low.item() == 5.5
    assert high.flatten().tolist() == [-2.5, -1.5, 0.5]


def test_the_split_has_the_low_part_first_and_then_the_bands_fastest():
    x = torch.randn(2, 3, 4, 6)
    low, (high,) = haar2d(x)
    torch.testing.assert_close(haar_split(x), torch.cat([low, high.flatten(1, 2)], 1), rtol=0, atol=0)


def test_haar_has_second_derivatives_and_a_transposed_inverse():
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(haar_split, x)
    assert torch.autograd.gradgradcheck(lambda x: haar_split(x).square(), x)
    bands = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: ihaar2d(b[:, :1], [b[:, 1:].unflatten(1, (1, 3))]), bands)


def test_filters_in_closed_form_and_orthonormal():
    root = math.sqrt(3)
    low = [(1 - root), (3 - root), (3 + root), (1 + root)]
    assert analysis_filters("db2")[0] == pytest.approx([c / (4 * math.sqrt(2)) for c in low], abs=1e-14)
    for name in WAVELETS:
        filters = torch.tensor(analysis_filters(name), dtype=torch.float64)
        for shift in range(0, filters.shape[1], 2):
            products = filters[:, shift:] @ filters[:, : filters.shape[1] - shift].T
            wanted = torch.eye(2, dtype=torch.float64) * (shift == 0)
            torch.testing.assert_close(products, wanted, atol=1e-10, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WAVELETS), st.sampled_from(MODES), st.integers(1, 3), st.integers(1, 19), st.integers(1, 19))
def test_daubechies_is_the_equations_and_pywavelets_and_inverts(wavelet, mode, levels, height, width):
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    low, highs = dwt2d(x, wavelet, levels, mode)
    expected = reference.dwt2d(x, wavelet, levels, mode)
    same((low, highs), expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(idwt2d(low, highs, wavelet, mode, (height, width)), x, atol=1e-8, rtol=1e-8)
    weight = torch.randn_like(low)
    grads = [torch.autograd.grad((part * weight).sum(), x)[0] for part in (low, expected[0])]
    torch.testing.assert_close(*grads, atol=1e-9, rtol=1e-9)
    if pywt is None:
        return
    theirs = x.detach().numpy()
    for high in highs:
        theirs, bands = pywt.dwt2(theirs, wavelet, mode=mode)
        for mine, right in zip(high.unbind(2), bands, strict=True):
            torch.testing.assert_close(mine.detach(), torch.from_numpy(right), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(low.detach(), torch.from_numpy(theirs), atol=1e-8, rtol=1e-8)


@pytest.mark.skipif(pywt is None, reason="PyWavelets is not installed")
@pytest.mark.parametrize("size", [(8, 8), (16, 12)])
def test_haar_by_both_ways_and_by_pywavelets_over_levels(size):
    x = torch.randn(2, 3, *size)
    same(haar2d(x, 2), dwt2d(x, "haar", 2), atol=1e-5, rtol=1e-5)
    low, *details = pywt.wavedec2(x.numpy(), "haar", level=2, mode="periodization")
    highs = [torch.stack([torch.from_numpy(band) for band in bands], 2) for bands in reversed(details)]
    same(haar2d(x, 2), (torch.from_numpy(low), highs), atol=1e-5, rtol=1e-5)


def test_it_compiles_and_runs_in_bf16():
    x = torch.randn(1, 2, 8, 8)

    def there_and_back(x):
        return ihaar2d(*haar2d(x, 2)) + idwt2d(*dwt2d(x, "db2", 2), "db2")

    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), 2 * x, atol=1e-5, rtol=1e-5)
    assert there_and_back(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: haar2d(x, 0), "levels must be at least 1, got 0"),
        (lambda x: haar2d(x, 3), "height must be divisible by 8 for 3 levels, got 4"),
        (lambda x: haar2d(x[..., :3]), "width must be divisible by 2 for 1 levels, got 3"),
        (lambda x: haar2d(x[0]), "x must have shape"),
        (lambda x: dwt2d(x, "sym4"), "wavelet must be one of db1, db2"),
        (lambda x: dwt2d(x, "db2", 1, "mirror"), "mode must be one of periodization, symmetric, zero"),
        (lambda x: ihaar2d(x, [x.unsqueeze(2)]), r"highs must have shape \(1, 1, 3, 4, 4\)"),
    ],
)
def test_what_cannot_be_transformed_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(1, 1, 4, 4))
