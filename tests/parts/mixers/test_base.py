"""Causal attention without a matrix of all pairs, against one with it."""

import pytest
import torch
import torch.nn.functional as F

from everyformer.parts.mixers.base import ROWS, causal_attention


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("tokens", "seen"), [(1, 1), (1, 9), (9, 9), (5, 9), (ROWS, ROWS + 7), (2 * ROWS + 3, 2 * ROWS + 4)]
)
def test_it_is_attention_with_a_mask_of_all_pairs(tokens, seen, masked):
    query = torch.randn(2, 3, tokens, 4, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, 3, seen, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    real = torch.rand(2, seen) < 0.7 if masked else None
    allowed = torch.ones(2, tokens, seen, dtype=torch.bool).tril(seen - tokens)
    counts = torch.ones(2, tokens, dtype=torch.bool)
    if masked:
        allowed &= real[:, None] | torch.eye(seen, dtype=torch.bool)[seen - tokens :]
        counts = real[:, seen - tokens :]
    mixed = causal_attention(query, key, value, real, scale=0.7)
    assert torch.isfinite(mixed).all()
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed[:, None], scale=0.7)
    mixed, expected = (part.transpose(1, 2)[counts] for part in (mixed, expected))
    torch.testing.assert_close(mixed, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(expected)
    grads, right = (torch.autograd.grad((part * weight).sum(), (query, key, value)) for part in (mixed, expected))
    torch.testing.assert_close(grads, right, rtol=1e-9, atol=1e-11)
