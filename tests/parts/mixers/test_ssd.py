import pytest
import torch

from everyformer import mixers
from everyformer.parts.mixers.ssd import SSD, ShortConv, decayed_attention


def parts(tokens=150, key_heads=3, dtype=torch.float64):
    torch.manual_seed(0)
    query, key = (torch.randn(2, key_heads, tokens, 5, dtype=dtype) for _ in range(2))
    value = torch.randn(2, 3, tokens, 4, dtype=dtype)
    return query, key, value, -torch.rand(2, 3, tokens, dtype=dtype)


def recurrence(query, key, value, log_decay, state):
    """One token after the other, by the definition."""
    rows = []
    for token in range(value.shape[2]):
        write = key[:, :, token, :, None] * value[:, :, token, None]
        state = log_decay[:, :, token, None, None].exp() * state + write
        rows.append((query[:, :, token, None] @ state)[:, :, 0])
    return torch.stack(rows, dim=2), state


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 150])
@pytest.mark.parametrize("key_heads", [1, 3])
def test_chunks_equal_the_recurrence(tokens, key_heads):
    given, state = parts(tokens, key_heads), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    expected, last = recurrence(*given, state)
    found, kept = decayed_attention(*given, state)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(kept, last, rtol=1e-10, atol=1e-12)


def test_chunks_equal_attention_under_a_decaying_mask():
    query, key, value, log_decay = parts()
    since = log_decay.cumsum(-1)
    mask = (since[..., :, None] - since[..., None, :]).tril().exp().tril()
    expected = (query @ key.transpose(-1, -2) * mask) @ value
    torch.testing.assert_close(decayed_attention(query, key, value, log_decay)[0], expected, rtol=1e-9, atol=1e-11)


def test_single_precision_is_near_over_long_texts():
    given = parts(3000)
    found, _ = decayed_attention(*(part.float() for part in given))
    torch.testing.assert_close(found.double(), decayed_attention(*given)[0], rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_recurrence():
    given = [part.requires_grad_() for part in parts(70)]
    state = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 70, 4, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad((way(*given, state)[0] * weights).sum(), [*given, state])
        for way in (decayed_attention, recurrence)
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_it_is_transformers_mamba2():
    """The same weights give the same outputs as transformers' module."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = transformers.Mamba2Config(
        hidden_size=32, num_heads=4, head_dim=16, state_size=8, n_groups=1, expand=2, conv_kernel=4, chunk_size=16
    )
    theirs = Mamba2Mixer(config, layer_idx=0).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    ours = SSD(32, heads=4, state=8)
    names = {
        "inside.weight": "in_proj.weight", "conv.weight": "conv1d.weight", "conv.bias": "conv1d.bias",
        "step_bias": "dt_bias", "log_rate": "A_log", "skip": "D", "norm.weight": "norm.weight",
        "out.weight": "out_proj.weight",
    }  # fmt: skip
    state = theirs.state_dict()
    ours.load_state_dict({name: state[other] for name, other in names.items()})
    x = torch.randn(2, 40, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_left_padding_is_as_if_it_was_not_there():
    mixer, x = mixers.create("ssd", 32, causal=True).double(), torch.randn(1, 20, 32, dtype=torch.float64)
    mask = torch.arange(20)[None] >= 7
    torch.testing.assert_close(mixer(x, mask=mask)[:, 7:], mixer(x[:, 7:]), rtol=1e-9, atol=1e-11)


def test_what_is_kept_does_not_grow():
    mixer, cache = mixers.create("ssd", 32, causal=True), {}
    sizes = set()
    for _ in range(3):
        mixer(torch.randn(1, 40, 32), cache=cache)
        sizes.add(sum(part.numel() for part in cache.values() if torch.is_tensor(part)))
    assert len(sizes) == 1


def test_a_short_convolution_sees_the_last_tokens_alone():
    conv, x = ShortConv(3, 4), torch.randn(1, 9, 3)
    other = x.clone()
    other[:, 2] += 1
    changed = (conv(other) - conv(x)).abs().sum((0, 2)) > 1e-6
    assert changed.tolist() == [False] * 2 + [True] * 4 + [False] * 3


@pytest.mark.parametrize("given", [{"state": 0}, {"expand": 0}, {"conv": 0}])
def test_sizes_below_one_are_refused(given):
    with pytest.raises(ValueError, match="state, expand and conv must be at least 1"):
        SSD(32, **given)
