import os
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.lab.measure import peak_extra_bytes
from everyformer.ops.hadamard import hadamard, hadamard_matrix, has_hadamard
from everyformer.ops.hadamard.matrices import _bases

# Widths of language models' layers: powers of two, and 12, 20, 28, 76, 108, 140, 148, 172 times one.
WIDTHS = [768, 896, 3584, 4864, 5120, 8192, 8960, 11008, 13824, 14336, 18944]


@pytest.mark.parametrize("order", [1, 2, 4, 16, 64, *_bases()])
def test_every_base_is_orthogonal_and_of_one_size(order):
    matrix = hadamard_matrix(order)
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, order**-0.5), atol=1e-15, rtol=0)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(order, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", WIDTHS)
def test_widths_of_language_models_keep_length_and_come_back(size):
    x = torch.randn(2, size, dtype=torch.float64)
    y = hadamard(x)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(hadamard(y, inverse=True), x)


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from([1, 2, 8, 12, 20, 24, 28, 52, 64, 128, 160, 172, 256, 4096]),
    rows=st.integers(0, 5),
    inverse=st.booleans(),
)
def test_small_products_equal_the_whole_matrix(size, rows, inverse):
    x = torch.randn(rows, size)
    expected = hadamard(x, inverse=inverse, backend="reference")
    torch.testing.assert_close(hadamard(x, inverse=inverse), expected, atol=3e-6, rtol=3e-6)


def test_the_kernel_equals_the_whole_matrix_in_tritons_interpreter():
    code = """
import torch
from everyformer.ops.hadamard import hadamard
torch.manual_seed(0)
for size in (1, 2, 16, 12, 56, 256):
    for inverse in (False, True):
        for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 0.05)):
            x = torch.randn(3, 2 * size, dtype=dtype, requires_grad=True)
            out, truth = (hadamard(x, block=size, inverse=inverse, backend=b) for b in ("triton", "reference"))
            torch.testing.assert_close(out, truth, atol=tolerance, rtol=tolerance)
            grads = [torch.autograd.grad(y.sin().sum(), x)[0] for y in (out, truth)]
            torch.testing.assert_close(*grads, atol=2 * tolerance, rtol=2 * tolerance)
assert hadamard(torch.zeros(0, 8), backend="triton").shape == (0, 8)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})


def test_any_axis_in_blocks():
    x = torch.randn(3, 48, 5)
    y = hadamard(x, 1, block=16)
    expected = torch.einsum("ij,abjc->abic", hadamard_matrix(16).float(), x.view(3, 3, 16, 5)).reshape(3, 48, 5)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("size", [16, 12])
def test_gradients(size):
    x = torch.randn(2, 2 * size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: hadamard(x, block=size), x)
    assert torch.autograd.gradgradcheck(lambda x: hadamard(x, block=size) ** 2, x)


def test_it_spreads_an_outlier():
    x = torch.zeros(1, 1024)
    x[0, 17] = 32
    torch.testing.assert_close(hadamard(x).abs(), torch.ones(1, 1024))


def test_bf16_and_compile():
    x = torch.randn(4, 256)
    torch.testing.assert_close(hadamard(x.bfloat16()).float(), hadamard(x), atol=0.05, rtol=0.05)
    compiled = torch.compile(hadamard, backend="aot_eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(compiled(x), hadamard(x))


def test_compiled_code_takes_many_sizes_any_axis_and_gradients():
    def work(x):
        return hadamard(hadamard(hadamard(x, 0).sin(), block=12), 0, inverse=True) + hadamard(x, block=1)

    x = torch.randn(16, 24, requires_grad=True)
    out, truth = torch.compile(work, backend="aot_eager", fullgraph=True)(x), work(x)
    torch.testing.assert_close(out, truth)
    torch.testing.assert_close(*(torch.autograd.grad(y.sin().sum(), x)[0] for y in (out, truth)))


def test_memory_is_that_of_the_rows():
    x = torch.randn(16, 4096)
    hadamard(x)  # the small matrices are made once
    assert peak_extra_bytes(lambda: hadamard(x)) <= 3 * x.nbytes


def test_bad_input_is_named():
    assert not has_hadamard(6)
    with pytest.raises(
        ValueError, match=r"order must be a power of two, or one times 12, 20.*got 130; .* blocks of 2 "
    ):
        hadamard(torch.zeros(3, 130))
    with pytest.raises(ValueError, match="block must divide the 10 values along dim -1, got 4"):
        hadamard(torch.zeros(2, 10), block=4)
    with pytest.raises(ValueError, match="backend must be one of"):
        hadamard(torch.zeros(2, 4), backend="cuda")
    with pytest.raises(TypeError, match="x must be of a floating-point type"):
        hadamard(torch.zeros(2, 4, dtype=torch.int8))
