import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.ops.varlen_attention import varlen_attention


def results(inputs, lengths, backend, scale=None):
    out = varlen_attention(*inputs, lengths, backend=backend, scale=scale)
    return [out, *torch.autograd.grad((out * out.detach().cos()).sum(), inputs)]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    heads=st.integers(1, 3),
    dim=st.sampled_from([1, 4, 8]),
    scale=st.sampled_from([None, 0.7]),
)
def test_torch_gives_the_reference_and_its_gradients(lengths, heads, dim, scale):
    inputs = [torch.randn(sum(lengths), heads, dim, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    for ours, truth in zip(
        results(inputs, lengths, "torch", scale), results(inputs, lengths, "reference", scale), strict=True
    ):
        torch.testing.assert_close(ours, truth)


def test_it_runs_in_bf16_and_compiles():
    inputs = torch.randn(3, 30, 2, 8).to(torch.bfloat16).unbind(0)
    compiled = torch.compile(lambda *x: varlen_attention(*x, [10, 20]), fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), varlen_attention(*inputs, [10, 20]), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("lengths", "message"), [([10, 10], "add up to the 30 tokens"), ([0, 30], "at least 1"), ([31], "add up")]
)
def test_lengths_that_do_not_fit_are_refused(lengths, message):
    with pytest.raises(ValueError, match=message):
        varlen_attention(*torch.randn(3, 30, 2, 8), lengths)


def test_shapes_and_backends_that_do_not_exist_are_refused():
    query, key, value = torch.randn(3, 30, 2, 8)
    with pytest.raises(ValueError, match="alike"):
        varlen_attention(query, key[:20], value, [30])
    with pytest.raises(ValueError, match="backend must be"):
        varlen_attention(query, key, value, [30], backend="magic")
    with pytest.raises(ValueError, match="dropout must be 0"):
        varlen_attention(query, key, value, [30], backend="reference", dropout=0.1)


def test_triton_kernels_give_the_reference_in_the_interpreter():
    """In a process of its own: the interpreter has to be chosen before triton is imported."""
    code = """
import torch
from everyformer.ops.varlen_attention import varlen_attention
torch.manual_seed(0)
for lengths, dim in (([70, 3, 17], 16), ([1, 64], 8)):
    inputs = [torch.randn(sum(lengths), 2, dim, requires_grad=True) for _ in range(3)]
    found = []
    for backend in ("triton", "reference"):
        out = varlen_attention(*inputs, lengths, backend=backend)
        found.append([out, *torch.autograd.grad((out * out.detach().cos()).sum(), inputs)])
    for ours, truth in zip(*found):
        torch.testing.assert_close(ours, truth, atol=2e-5, rtol=1e-4)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
