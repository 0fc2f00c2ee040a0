import pytest
import torch

from everyformer.parts.language import rotary, rotate
from everyformer.parts.mixers import join_heads, split_heads
from everyformer.parts.mixers.retention import Retention


def test_it_is_the_parallel_form_of_the_paper():
    """Equation 5 with a decay mask over all tokens, then the norm and gate of equation 8."""
    mixer, x = Retention(32, heads=2).double(), torch.randn(2, 90, 32, dtype=torch.float64)
    query, key, value = (split_heads(part, 2) for part in mixer.qkv(x).chunk(3, dim=-1))
    table = rotary(torch.arange(90), 16).double()
    scores = rotate(query, table) @ rotate(key, table).transpose(-1, -2) / 4
    place = torch.arange(90.0, dtype=torch.float64)
    rates = torch.tensor([31 / 32, 63 / 64], dtype=torch.float64)[:, None, None]
    mask = (rates ** (place[:, None] - place)).tril()
    mixed = scores * mask @ value
    mixed = mixed / (mixed.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = mixer.out(torch.nn.functional.silu(mixer.gate(x)) * join_heads(mixed))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-5, atol=1e-7)  # the rates are kept in single precision


def test_only_the_distance_counts():
    mixer, x = Retention(32), torch.randn(1, 30, 32)
    cache = {"tokens": 1000}
    torch.testing.assert_close(mixer(x, cache=cache), mixer(x), rtol=1e-3, atol=1e-4)
    assert cache["tokens"] == 1030


def test_an_odd_head_is_refused():
    with pytest.raises(ValueError, match="dim / heads must be even"):
        Retention(12, heads=4)
