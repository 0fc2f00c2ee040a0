import statistics

import pytest
import torch
import torch.nn.functional as F

from everyformer import mixers
from everyformer.parts.mixers.base import join_heads, split_heads

DIM, HEADS = 32, 4


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_linear_attention_is_what_its_features_weigh(causal, chunk):
    mixer = mixers.create("linear", DIM, heads=HEADS, causal=causal, chunk=chunk).double()
    x = torch.randn(2, 20, DIM, dtype=torch.float64)
    query, key, value = (split_heads(part, HEADS) for part in mixer.qkv(x).chunk(3, dim=-1))
    pairs = (F.elu(query) + 1) @ (F.elu(key) + 1).transpose(-2, -1)
    pairs = pairs.tril() if causal else pairs
    expected = mixer.out(join_heads(pairs @ value / pairs.sum(dim=-1, keepdim=True)))
    torch.testing.assert_close(mixer(x), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_more_features_come_nearer_to_full_attention(causal):
    full, x = mixers.create("full", DIM, heads=HEADS, causal=causal), torch.randn(4, 64, DIM)
    errors = []
    for features in (16, 256, 4096):
        mixer = mixers.create("performer", DIM, heads=HEADS, causal=causal, features=features)
        mixer.load_state_dict(full.state_dict())
        draws = []
        for _ in range(9):
            mixer.redraw()
            draws.append(float(((mixer(x) - full(x)).norm() / full(x).norm()).detach()))
        errors.append(statistics.median(draws))
    # Sixteen times the features take the error to a quarter in the limit; few of them are far from it.
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.1, errors


def test_directions_are_orthogonal_and_as_long_as_normal_ones():
    mixer = mixers.create("performer", 128, heads=2, features=192)
    blocks = F.normalize(mixer.directions, dim=1).unflatten(0, (3, 64))
    torch.testing.assert_close(blocks @ blocks.transpose(1, 2), torch.eye(64).expand(3, 64, 64), rtol=0, atol=1e-5)
    assert abs(mixer.directions.square().sum(dim=1).mean() / 64 - 1) < 0.1


def test_no_direction_is_preferred():
    mixer, drawn = mixers.create("performer", 8, heads=1, features=8), []
    for _ in range(2000):
        mixer.redraw()
        drawn.append(mixer.directions.clone())
    drawn = torch.stack(drawn)
    # Of 64 means of 2,000 unit normals, one beyond five standard errors comes once in 30,000 runs.
    assert drawn.mean(dim=0).abs().max() < 5 * 2000**-0.5
    assert (drawn.square().mean(dim=0) - 1).abs().max() < 5 * (2 / 2000) ** 0.5


def test_directions_are_drawn_anew_when_asked():
    mixer, x = mixers.create("performer", DIM, heads=HEADS), torch.randn(1, 16, DIM)
    before = mixer(x)
    assert torch.equal(mixer(x), before)
    mixer.redraw()
    assert not torch.allclose(mixer(x), before)


@pytest.mark.parametrize("causal", [False, True])
def test_large_queries_and_keys_stay_finite(causal):
    mixer = mixers.create("performer", DIM, heads=HEADS, causal=causal)
    x = (100 * torch.randn(2, 64, DIM)).requires_grad_()
    y = mixer(x)
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()


def test_a_cache_does_not_grow():
    for name in ("linear", "performer"):
        mixer, cache, sizes = mixers.create(name, DIM, heads=HEADS, causal=True), {}, set()
        with torch.no_grad():
            for count in (5, 1, 70, 1):
                mixer(torch.randn(2, count, DIM), cache=cache)
                sizes.add(sum(part.numel() for part in cache["sums"]))
        assert len(sizes) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {"chunk": 0}, "chunk must be at least 1, got 0"),
        ("performer", {"chunk": 0}, "chunk must be at least 1, got 0"),
        ("performer", {"features": 0}, "features must be at least 1, got 0"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        mixers.create(name, DIM, **options)
