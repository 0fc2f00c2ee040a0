import pytest
import torch

from everyformer import mixers
from everyformer.parts.mixers.rwkv import FASTEST, RWKV, gated_attention


def parts(tokens, fastest=FASTEST):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, tokens, 4, dtype=torch.float64) for _ in range(3))
    log_decay = -fastest * torch.rand(2, 3, tokens, 4, dtype=torch.float64)
    return query, key, value, log_decay, torch.randn(3, 1, 4, dtype=torch.float64)


def recurrence(query, key, value, log_decay, bonus, state):
    """One token after the other, by the definition."""
    rows = []
    for token in range(value.shape[2]):
        write = key[:, :, token, :, None] * value[:, :, token, None]
        rows.append((query[:, :, token, None] @ (state + bonus.transpose(-1, -2) * write))[:, :, 0])
        state = log_decay[:, :, token, :, None].exp() * state + write
    return torch.stack(rows, dim=2), state


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 60])
def test_chunks_equal_the_recurrence(tokens):
    given, state = parts(tokens), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected, last = recurrence(*given, state)
    found, kept = gated_attention(*given, state)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(kept, last, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("steep", [0.0, FASTEST])
def test_gates_at_their_edges_stay_in_single_precision(steep):
    query, key, value, log_decay, bonus = parts(64)
    given = query, key, value, torch.full_like(log_decay, -steep), bonus
    exact = gated_attention(*given)[0]
    single = [part.float().requires_grad_() for part in given]
    found = gated_attention(*single)[0]
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    found.square().sum().backward()
    assert all(torch.isfinite(part.grad).all() for part in single)


def test_steeper_gates_are_held():
    mixer, x = RWKV(32), torch.randn(1, 40, 32)
    torch.nn.init.constant_(mixer.decay, 50.0)
    assert torch.isfinite(mixer(x)).all()


def test_left_padding_is_as_if_it_was_not_there():
    mixer, x = mixers.create("rwkv", 32, causal=True).double(), torch.randn(1, 20, 32, dtype=torch.float64)
    mask = torch.arange(20)[None] >= 7
    torch.testing.assert_close(mixer(x, mask=mask)[:, 7:], mixer(x[:, 7:]), rtol=1e-9, atol=1e-11)


def test_a_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="rank must be at least 1"):
        RWKV(32, rank=0)
