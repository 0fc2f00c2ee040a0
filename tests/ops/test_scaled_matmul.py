import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.ops.scaled_matmul import FORMATS, check_format, quantise, scaled_matmul
from everyformer.ops.scaled_matmul.torch import int8_by_float32, padded


def grid(exponent_bits, mantissa_bits, bias):
    """Every value of a small float format without infinities, by its definition."""
    values = set()
    for exponent in range(2**exponent_bits):
        for mantissa in range(2**mantissa_bits):
            fraction = mantissa / 2**mantissa_bits
            value = 2.0 ** (1 - bias) * fraction if exponent == 0 else 2.0 ** (exponent - bias) * (1 + fraction)
            values |= {value, -value}
    return torch.tensor(sorted(values), dtype=torch.float64)


def test_fp6_takes_the_nearest_value_of_e3m2():
    values = grid(3, 2, 3)
    assert values.max() == FORMATS["fp6"][0]
    x = torch.cat([torch.linspace(-28, 28, 4001), values.float(), torch.logspace(-4, 1, 500)])
    rounded, scale = quantise(x, "fp6")
    assert scale == 1
    nearest = (x.double()[:, None] - values).abs().amin(1)
    torch.testing.assert_close((rounded.double() - x).abs(), nearest, atol=0, rtol=0)
    assert torch.isin(rounded.double(), values).all()


@pytest.mark.parametrize("format", FORMATS)
def test_rounding_errs_by_half_a_step_and_zeros_stay(format):
    x = 50 * torch.randn(64, 48)
    values, scale = quantise(x, format)
    limit = FORMATS[format][0]
    assert values.float().abs().max() == limit
    error = (values.float() * scale - x).abs()
    if format == "int8":
        assert error.max() <= scale / 2 * 1.001
    else:
        relative, smallest = {"fp8": (2**-4, 2**-10), "fp6": (2**-3, 2**-5)}[format]
        assert (error <= torch.maximum(x.abs() * relative, scale * smallest) * 1.001).all()
    zeros, scale = quantise(torch.zeros(3), format)
    assert scale == 1 and not zeros.float().any()
    wider, scale = quantise(x, format, amax=2 * x.abs().amax())
    torch.testing.assert_close(wider.float().abs().max() * scale, x.abs().max(), atol=0, rtol=0.1)


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(0, 40), k=st.integers(1, 70), n=st.integers(1, 40),
    format=st.sampled_from(sorted(FORMATS)), transposed=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_the_product_is_that_of_the_reference(m, k, n, format, transposed, dtype):
    a, a_scale = quantise(torch.randn(m, k), format)
    b, b_scale = quantise(torch.randn(n, k), format)
    b = b.mT if transposed else b.mT.contiguous()
    out = scaled_matmul(a, a_scale, b, b_scale, dtype=dtype)
    truth = scaled_matmul(a, a_scale, b, b_scale, dtype=dtype, backend="reference")
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    torch.testing.assert_close(out, truth, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("k", [5, 1024, 2500])
def test_wider_types_give_the_same_integers(k):
    a, b = (torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((9, k), (k, 7)))
    a[0], b[:, 0] = 127, -127
    assert torch.equal(int8_by_float32(a, b).long(), a.long() @ b.long())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_padding_changes_nothing_but_the_shape(dtype):
    a, b = torch.randn(5, 20).mul(9).to(dtype), torch.randn(20, 9).mul(9).to(dtype)
    left, right = padded(a, b, 8, 24)
    assert left.shape == (24, 24) and right.shape == (24, 16)
    assert torch.equal((left.float() @ right.float())[:5, :9], a.float() @ b.float())
    assert padded(left, right, 8, 24)[0] is left


def test_the_kernel_is_that_of_the_reference_in_tritons_interpreter():
    code = """
import torch
from everyformer.ops.scaled_matmul import quantise, scaled_matmul
torch.manual_seed(0)
for m, k, n in ((1, 1, 1), (70, 50, 65), (0, 8, 4)):
    for format in ("int8", "fp8", "fp6"):
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.01)):
            a, b = quantise(torch.randn(m, k), format), quantise(torch.randn(n, k), format)
            out, truth = (scaled_matmul(*a, b[0].mT, b[1], dtype=dtype, backend=x) for x in ("triton", "reference"))
            torch.testing.assert_close(out, truth, atol=tolerance, rtol=tolerance)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})


@pytest.mark.parametrize("format", FORMATS)
def test_compile(format):
    def work(x, y):
        (a, a_scale), (b, b_scale) = quantise(x, format), quantise(y, format)
        return scaled_matmul(a, a_scale, b.mT, b_scale)

    x, y = torch.randn(6, 32), torch.randn(5, 32)
    compiled = torch.compile(work, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y), work(x, y))


def test_bad_input_is_named():
    one = torch.ones(())
    a, b = torch.ones(2, 3, dtype=torch.int8), torch.ones(3, 4, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"format must be one of int8, fp8, fp6 on cpu, got 'int4'"):
        quantise(torch.zeros(3), "int4")
    with pytest.raises(ValueError, match=r"format must be one of int8 on mps, got 'fp8'"):
        check_format("fp8", torch.device("mps"))
    with pytest.raises(TypeError, match="x must be of a floating-point type"):
        quantise(a, "int8")
    with pytest.raises(ValueError, match=r"a and b must be \(m, k\) and \(k, n\), got \(2, 3\) and \(2, 3\)"):
        scaled_matmul(a, one, a, one)
    with pytest.raises(TypeError, match=r"got torch.int8 and torch.float32"):
        scaled_matmul(a, one, b.float(), one)
    with pytest.raises(ValueError, match="backend must be one of reference, torch, triton, got 'cuda'"):
        scaled_matmul(a, one, b, one, backend="cuda")
