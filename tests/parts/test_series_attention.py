"""Dropout on the CPU has a path of its own: it must be the same function as torch's, with the same statistics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.parts import series_attention as attention


def reference(query, key, value, p, mask):
    """Softmax attention with the dropped weights given, from the definition."""
    weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
    return weights * mask / (1 - p) @ value


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 5),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 9),
    keys=st.integers(1, 9),
    dim=st.integers(1, 8),
    width=st.integers(1, 8),
    p=st.floats(0.05, 0.9),
    piece=st.integers(1, 200),
)
def test_dropped_attention_is_the_definition_with_its_mask(batch, heads, tokens, keys, dim, width, p, piece):
    shapes = ((batch, heads, tokens, dim), (batch, heads, keys, dim), (batch, heads, keys, width))
    ours = [torch.randn(shape, requires_grad=True) for shape in shapes]
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    masks = []

    def remembering(like, p, original=attention.keep_mask):
        masks.append(original(like, p))
        return masks[-1].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "keep_mask", remembering)
        patch.setattr(attention._DroppedAttention, "PIECE", piece)
        out = attention.full_attention(*ours, dropout_p=p)
    expected = reference(*theirs, p, torch.cat(masks).double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    seed = torch.randn_like(out)
    for mine, right in zip(
        torch.autograd.grad(out, ours, seed), torch.autograd.grad(expected, theirs, seed.double()), strict=True
    ):
        torch.testing.assert_close(mine.double(), right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_its_mean(p):
    torch.manual_seed(0)
    out = attention.dropout(torch.ones(1000, 1001), p, training=True)
    kept = (out != 0).double().mean().item()
    assert abs(kept - (1 - p)) < 5 * (p * (1 - p) / 1e6) ** 0.5  # five standard errors
    torch.testing.assert_close(out[out != 0].unique(), torch.tensor([1 / (1 - p)]))
    columns = (out != 0).double().mean(0)
    assert (columns - (1 - p)).abs().max() < 6 * (p * (1 - p) / 1e3) ** 0.5


def test_dropout_follows_the_seed_and_leaves_evaluation_alone():
    x = torch.randn(7, 5)
    torch.manual_seed(3)
    first = attention.dropout(x, 0.5, training=True)
    torch.manual_seed(3)
    assert torch.equal(first, attention.dropout(x, 0.5, training=True))
    assert attention.dropout(x, 0.5, training=False) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_and_evaluation_are_torchs_own(dtype):
    tensors = [torch.randn(1, 2, 4, 8, dtype=dtype) for _ in range(3)]
    torch.testing.assert_close(
        attention.full_attention(*tensors), F.scaled_dot_product_attention(*tensors), rtol=0, atol=0
    )
    assert attention.full_attention(*[t.requires_grad_() for t in tensors], dropout_p=0.5).dtype == dtype
