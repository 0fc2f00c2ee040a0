import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.lab.measure import peak_extra_bytes
from everyformer.ops.sparse_linear_attention import FEATURE_MAPS, projected, sparse_linear_attention
from everyformer.ops.sparse_linear_attention.blocks import classify, mask_of

shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "heads": st.integers(1, 3),
        "tokens": st.integers(1, 70),
        "keys": st.integers(1, 70),
        "dim": st.sampled_from([1, 4, 8, 13]),
    }
)
options = st.fixed_dictionaries(
    {
        "critical": st.sampled_from([0.0, 0.05, 0.3, 1.0]),
        "negligible": st.sampled_from([0.0, 0.1, 0.5]),
        "block": st.sampled_from([4, 8, 16]),
        "feature_map": st.sampled_from(FEATURE_MAPS),
        "linear_over": st.sampled_from(["marginal", "all"]),
    }
)


def tensors(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = (shape["tokens"], shape["keys"], shape["keys"])
    return [
        torch.randn(shape["batch"], shape["heads"], n, shape["dim"], generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
        for n in lengths
    ]


def results(inputs, backend, **options):
    outputs = sparse_linear_attention(*inputs, backend=backend, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs]
    grads = torch.autograd.grad(sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)), inputs)
    return [*outputs, *grads]


@settings(max_examples=60, deadline=None)
@given(shape=shapes, options=options, seed=st.integers(0, 1000))
def test_torch_gives_the_reference_and_its_gradients(shape, options, seed):
    inputs = tensors(shape, seed=seed)
    for ours, truth in zip(results(inputs, "torch", **options), results(inputs, "reference", **options), strict=True):
        torch.testing.assert_close(ours, truth, atol=1e-9, rtol=1e-7)


@settings(max_examples=30, deadline=None)
@given(shape=shapes, options=options)
def test_the_projected_sum_is_the_same_with_and_without_gradients(shape, options):
    inputs = tensors(shape)
    weight, bias = torch.randn(shape["dim"], shape["dim"], dtype=torch.float64), torch.randn(shape["dim"]).double()
    with torch.no_grad():
        ours = projected(*inputs, weight, bias, **options)
        assert not ours.requires_grad
    assert projected(*inputs, weight, bias, **options).requires_grad
    sparse, linear = sparse_linear_attention(*inputs, backend="reference", **options)
    for out in (ours, projected(*inputs, weight, bias, **options)):
        torch.testing.assert_close(out, sparse + linear @ weight.t() + bias, atol=1e-9, rtol=1e-7)


def test_chunks_and_whole_agree(monkeypatch):
    from everyformer.ops.sparse_linear_attention import torch as plain

    inputs = tensors({"batch": 1, "heads": 2, "tokens": 200, "keys": 150, "dim": 8})
    whole = results(inputs, "torch", critical=0.2, block=16)
    monkeypatch.setattr(plain, "SCORES_AT_A_TIME", 1)
    for ours, truth in zip(results(inputs, "torch", critical=0.2, block=16), whole, strict=True):
        torch.testing.assert_close(ours, truth)


def test_everything_critical_is_full_attention():
    query, key, value = tensors({"batch": 2, "heads": 2, "tokens": 50, "keys": 37, "dim": 8})
    sparse, _ = sparse_linear_attention(query, key, value, critical=1.0, negligible=0.0, block=16)
    torch.testing.assert_close(sparse, torch.nn.functional.scaled_dot_product_attention(query, key, value))


def test_linear_over_all_is_plain_linear_attention():
    query, key, value = tensors({"batch": 1, "heads": 2, "tokens": 40, "keys": 40, "dim": 8})
    _, linear = sparse_linear_attention(query, key, value, linear_over="all", block=16)
    weights = query.softmax(-1) @ key.softmax(-1).transpose(-1, -2)
    torch.testing.assert_close(linear, weights @ value / (weights.sum(-1, keepdim=True) + 1e-5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near(dtype):
    shape = {"batch": 1, "heads": 2, "tokens": 150, "keys": 150, "dim": 16}
    truth = results(tensors(shape), "reference", critical=0.3, block=16)
    # bfloat16 inputs are rounded before anything is computed, so compare with the reference on the rounded inputs.
    rounded = [x.detach().to(dtype).double().requires_grad_() for x in tensors(shape)]
    truth = results(rounded, "reference", critical=0.3, block=16)
    ours = results([x.detach().to(dtype).requires_grad_() for x in rounded], "torch", critical=0.3, block=16)
    tolerance = 2e-5 if dtype == torch.float32 else 6e-2
    for mine, expected in zip(ours, truth, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), expected, atol=tolerance, rtol=tolerance)


def test_transposed_views_give_the_same():
    shape = {"batch": 2, "heads": 3, "tokens": 33, "keys": 33, "dim": 8}
    inputs = tensors(shape)
    views = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in inputs]
    assert not views[0].is_contiguous()
    for ours, truth in zip(results(views, "torch", block=8), results(inputs, "torch", block=8), strict=True):
        torch.testing.assert_close(ours, truth)


def test_it_compiles_without_a_break():
    inputs = tensors({"batch": 1, "heads": 2, "tokens": 64, "keys": 64, "dim": 8}, torch.float32)
    compiled = torch.compile(lambda *x: sparse_linear_attention(*x, block=16, critical=0.3), fullgraph=True)
    for ours, truth in zip(compiled(*inputs), sparse_linear_attention(*inputs, block=16, critical=0.3), strict=True):
        torch.testing.assert_close(ours, truth)
        ours.sum().backward(retain_graph=True)


def test_the_operator_keeps_torchs_rules():
    from everyformer.ops.sparse_linear_attention.dispatch import _attend, _attend_projected

    query, key, value = (x.detach()[0].float().requires_grad_() for x in
                         tensors({"batch": 1, "heads": 2, "tokens": 32, "keys": 48, "dim": 4}))  # fmt: skip
    top, bottom = classify(query.detach(), key.detach(), 0.3, 0.3, 16)
    torch.library.opcheck(
        _attend, (query, key, value, top, bottom, 16, 48, False, "softmax", False),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip
    tensors_only = [x.detach() for x in (query, key, value)]
    torch.library.opcheck(
        _attend_projected,
        (*tensors_only, top, bottom, 16, 48, False, "softmax", torch.eye(4), torch.zeros(4)),
        test_utils=("test_schema", "test_faketensor"),
    )


@settings(max_examples=30, deadline=None)
@given(shape=shapes, options=options)
def test_the_block_map_has_the_fractions_asked_for(shape, options):
    query, key, _ = (x.detach().flatten(0, 1) for x in tensors(shape))
    block, blocks = options["block"], -(-shape["keys"] // options["block"])
    top, bottom = classify(query, key, options["critical"], options["negligible"], block)
    mask = mask_of(top, bottom, blocks)
    critical = 0 if options["critical"] == 0 else max(1, int(options["critical"] * blocks))
    assert (mask == 1).sum(-1).unique().tolist() == [critical]
    assert (mask == -1).sum(-1).unique().tolist() == [min(int(options["negligible"] * blocks), blocks - critical)]


def test_critical_blocks_are_those_with_the_largest_pooled_scores():
    query, key, _ = (x.detach().flatten(0, 1) for x in
                     tensors({"batch": 1, "heads": 1, "tokens": 64, "keys": 64, "dim": 8}))  # fmt: skip
    top, bottom = classify(query, key, 0.25, 0.25, 8)
    scores = query.view(1, 8, 8, 8).mean(2) @ (key - key.mean(1, keepdim=True)).view(1, 8, 8, 8).mean(2).transpose(1, 2)
    order = scores.float().argsort(-1)
    assert torch.equal(top.sort(-1).values, order[..., -2:].sort(-1).values)
    assert torch.equal(bottom.sort(-1).values, order[..., :2].sort(-1).values)


def test_memory_grows_with_tokens_not_with_their_square():
    def extra(tokens):
        query, key, value = torch.randn(3, 1, 2, tokens, 32)
        return peak_extra_bytes(lambda: sparse_linear_attention(query, key, value, critical=4 * 64 / tokens))

    extra(1024)
    assert extra(8192) < 2.6 * extra(4096)
    assert extra(8192) < 8192 * 8192 * 4 / 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_map": "gelu"}, "feature_map must be one of"),
        ({"linear_over": "none"}, "linear_over must be"),
        ({"backend": "magic"}, "backend must be"),
    ],
)
def test_unknown_names_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        sparse_linear_attention(*torch.randn(3, 1, 1, 8, 4), **change)


def test_shapes_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="must be"):
        sparse_linear_attention(torch.randn(1, 2, 8, 4), torch.randn(1, 1, 8, 4), torch.randn(1, 1, 8, 4))
    with pytest.raises(ValueError, match="query's dim 4, got 8"):
        sparse_linear_attention(torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8))


def test_triton_kernels_give_the_reference_in_the_interpreter():
    """In a process of its own: the interpreter has to be chosen before triton is imported."""
    code = """
import torch
from everyformer.ops.sparse_linear_attention import sparse_linear_attention
torch.manual_seed(0)
cases = [(40, 56, 16, 0.3, "softmax", "marginal"), (33, 17, 8, 1.0, "elu", "all")]
cases += [(32, 32, 16, 0.3, "relu", "marginal")]
for tokens, keys, dim, critical, feature_map, over in cases:
    inputs = [torch.randn(1, 2, n, dim, requires_grad=True) for n in (tokens, keys, keys)]
    found = []
    for backend in ("triton", "reference"):
        out = sparse_linear_attention(*inputs, critical=critical, negligible=0.0 if critical == 1.0 else 0.2, block=16,
                                      feature_map=feature_map, linear_over=over, backend=backend)
        grads = torch.autograd.grad((out[0] * out[0].detach().cos()).sum() + out[1].sin().sum(), inputs)
        found.append([*out, *grads])
    for ours, truth in zip(*found):
        torch.testing.assert_close(ours, truth, atol=2e-5, rtol=1e-4)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
