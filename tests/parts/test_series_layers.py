import math

import torch
import torch.nn.functional as F

from everyformer.parts.series_attention import prob_attention
from everyformer.parts.series_layers import normalise_window
from everyformer.parts.series_vanilla import VanillaTransformer


def test_prob_attention_is_full_when_every_query_is_chosen_and_else_the_mean():
    query, key, value = torch.randn(3, 1, 2, 30, 4)
    full = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(prob_attention(query, key, value, factor=30), full)
    out = prob_attention(query, key, value)
    mean = (out - value.mean(-2, keepdim=True)).abs().sum(-1) < 1e-6
    assert (mean.sum(-1) == 30 - math.ceil(math.log(30))).all()


def test_the_decoder_starts_from_the_last_observations():
    model = VanillaTransformer(12, 4, 2, dim=8, heads=2, layers=1, ff=8, label=6, dropout=0.0)
    seen = []
    model.embed_decoder.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    x = torch.randn(2, 12, 2)
    assert model(x).shape == (2, 4, 2)
    assert torch.equal(seen[0], torch.cat([x[:, 6:], torch.zeros(2, 4, 2)], 1))


def test_a_window_is_normed_and_a_constant_stays_finite():
    window, mean, deviation = normalise_window(torch.cat([torch.randn(2, 50, 1) * 9 + 4, torch.ones(2, 50, 1)], 2))
    torch.testing.assert_close(window[..., 0].std(1, correction=0), torch.ones(2), atol=1e-3, rtol=1e-3)
    assert window[..., 1].abs().max() < 1e-3
    assert mean.shape == deviation.shape == (2, 1, 2)
