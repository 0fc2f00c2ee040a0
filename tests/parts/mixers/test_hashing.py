import pytest
import torch
import torch.nn.functional as F

from everyformer import mixers
from everyformer.parts.mixers.base import join_heads, split_heads

DIM, HEADS = 32, 4


def full_with_shared_keys(mixer, x, causal):
    """Reformer's attention without hashing, from all pairs."""
    query, value = split_heads(mixer.query_key(x), HEADS), split_heads(mixer.value(x), HEADS)
    key = F.normalize(query, dim=-1)  # of norm √d, divided by √d
    scores = query @ key.transpose(-2, -1)
    tokens = x.shape[1]
    if causal:
        scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), float("-inf"))
    scores = scores.masked_fill(torch.eye(tokens).bool(), -1e5)
    return mixer.out(join_heads(scores.softmax(dim=-1) @ value))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_chunk_of_all_tokens_is_full_attention(causal, rounds):
    mixer = mixers.create("reformer", DIM, heads=HEADS, causal=causal, chunk=30, rounds=rounds, buckets=2).double()
    mixer.rotations.zero_()  # all tokens in one bucket
    x = torch.randn(2, 30, DIM, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), full_with_shared_keys(mixer, x, causal))


def test_more_rounds_come_nearer_to_full_attention():
    x = torch.randn(4, 128, DIM)
    errors = []
    for rounds in (1, 4, 16):
        torch.manual_seed(0)
        mixer = mixers.create("reformer", DIM, heads=HEADS, chunk=16, buckets=8, rounds=rounds)
        torch.nn.init.normal_(mixer.query_key.weight, std=0.5)  # attention that is far from even
        errors.append(float((mixer(x) - full_with_shared_keys(mixer, x, False)).detach().norm()))
    assert errors[0] > 1.3 * errors[1] > 1.3 * errors[2], errors


def test_like_tokens_share_a_bucket():
    mixer = mixers.create("reformer", DIM, heads=HEADS, buckets=16, rounds=8)
    query = torch.randn(1, HEADS, 64, DIM // HEADS)
    near = mixer.hashes(query + 0.05 * torch.randn_like(query), None) == mixer.hashes(query, None)
    far = mixer.hashes(query.flip(2), None) == mixer.hashes(query, None)
    assert near.float().mean() > 0.8 and far.float().mean() < 0.15


def test_rotations_are_drawn_anew_when_asked():
    mixer, x = mixers.create("reformer", DIM, heads=HEADS, chunk=8), torch.randn(1, 64, DIM)
    before = mixer(x)
    assert torch.equal(mixer(x), before)
    mixer.redraw()
    assert not torch.equal(mixer(x), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 0}, "chunk and rounds must be at least 1, got 0 and 4"),
        ({"rounds": 0}, "chunk and rounds must be at least 1, got 64 and 0"),
        ({"buckets": 5}, "buckets must be even and at least 2, got 5"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mixers.create("reformer", DIM, **options)
