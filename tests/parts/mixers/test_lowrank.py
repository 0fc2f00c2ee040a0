import pytest
import torch

from everyformer import mixers
from everyformer.parts.mixers.base import join_heads, split_heads
from everyformer.parts.mixers.lowrank import pseudo_inverse

DIM, HEADS = 32, 4


def full_of(mixer):
    full = mixers.create("full", DIM, heads=HEADS).double()
    full.qkv.load_state_dict(mixer.qkv.state_dict())
    full.out.load_state_dict(mixer.out.state_dict())
    return full


def test_linformer_that_keeps_every_token_is_full_attention():
    mixer = mixers.create("linformer", DIM, heads=HEADS, length=24, features=24).double()
    mixer.sums.data[:] = torch.eye(24)
    x = torch.randn(2, 24, DIM, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), full_of(mixer)(x))


def test_linformer_sums_projected_tokens():
    mixer = mixers.create("linformer", DIM, heads=HEADS, length=24, features=6).double()
    x = torch.randn(2, 20, DIM, dtype=torch.float64)
    query, key, value = mixer.qkv(x).chunk(3, dim=-1)
    key, value = mixer.sums[0, :, :20] @ key, mixer.sums[1, :, :20] @ value
    query, key, value = (split_heads(part, HEADS) for part in (query, key, value))
    weights = (query @ key.transpose(-2, -1) / (DIM // HEADS) ** 0.5).softmax(dim=-1)
    torch.testing.assert_close(mixer(x), mixer.out(join_heads(weights @ value)))


def test_a_landmark_for_every_token_is_full_attention():
    x = torch.randn(2, 24, DIM, dtype=torch.float64)
    mixer = mixers.create("nystrom", DIM, heads=HEADS, landmarks=24, steps=60).double()
    torch.testing.assert_close(mixer(x), full_of(mixer)(x), rtol=1e-5, atol=1e-6)


def test_more_landmarks_come_nearer_to_full_attention():
    # Tokens that change slowly, so that means of neighbours stand for them.
    x = torch.randn(4, 128, DIM, dtype=torch.float64).cumsum(dim=1) / 8
    errors = []
    for landmarks in (2, 8, 32):
        torch.manual_seed(0)
        mixer = mixers.create("nystrom", DIM, heads=HEADS, landmarks=landmarks, steps=30).double()
        errors.append(float((mixer(x) - full_of(mixer)(x)).detach().norm()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2], errors


def test_landmarks_are_means_of_stretches():
    x = torch.randn(2, 10, DIM)
    means, there = mixers.create("nystrom", DIM, landmarks=4).means(x, None)
    assert there is None
    for landmark, stretch in enumerate((slice(0, 3), slice(3, 5), slice(5, 8), slice(8, 10))):
        torch.testing.assert_close(means[:, landmark], x[:, stretch].mean(dim=1))
    mask = torch.tensor([[True] * 10, [False, True, False, True] + [False] * 6])
    means, there = mixers.create("nystrom", DIM, landmarks=4).means(x, mask)
    assert there.tolist() == [[True] * 4, [True, True, False, False]]
    torch.testing.assert_close(means[1, :2], x[1, [1, 3]])


def test_the_iteration_finds_the_inverse():
    matrix = torch.randn(3, 2, 8, 8, dtype=torch.float64).softmax(dim=-1)
    torch.testing.assert_close(pseudo_inverse(matrix, 40), torch.linalg.pinv(matrix))
    matrix[:, :, 5:] = matrix[:, :, :, 5:] = 0
    torch.testing.assert_close(pseudo_inverse(matrix, 60), torch.linalg.pinv(matrix), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_synthesizers_mix_by_scores_that_no_pair_of_tokens_makes(causal):
    x = torch.randn(2, 20, DIM, dtype=torch.float64)
    hidden_later = torch.ones(20, 20).triu(1).bool() if causal else torch.zeros(20, 20).bool()
    for name in ("synthesizer_dense", "synthesizer_random"):
        mixer = mixers.create(name, DIM, heads=HEADS, causal=causal, length=24).double()
        if name == "synthesizer_dense":
            scores = split_heads(mixer.hidden(x).relu(), HEADS) @ mixer.places[:, :20].transpose(-2, -1)
        else:
            scores = mixer.places[0, :, :20] @ mixer.places[1, :, :20].transpose(-2, -1)
        weights = scores.masked_fill(hidden_later, float("-inf")).softmax(dim=-1)
        expected = mixer.out(join_heads(weights @ split_heads(mixer.value(x), HEADS)))
        torch.testing.assert_close(mixer(x), expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linformer", {"features": 0}, "features must be at least 1, got 0"),
        ("nystrom", {"landmarks": 0}, "landmarks and steps must be at least 1, got 0 and 6"),
        ("nystrom", {"steps": 0}, "landmarks and steps must be at least 1, got 64 and 0"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        mixers.create(name, DIM, length=16, **options)
