import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from everyformer.lab.trajectories import Trajectories
from everyformer.papers.pasta import ComponentTokenizer
from everyformer.papers.pasta.tokenizer import mu_law, mu_law_inverse

SEEN, ACTED = Box(-np.inf, np.inf, (3,)), Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 4.0], np.float32))


def log(steps=200):
    seen = torch.randn(steps, 3) * torch.tensor([1.0, 10.0, 0.1]) + 5
    acted = torch.rand(steps, 2) * 4 + torch.tensor([-2.0, 0.0])
    return Trajectories(seen, acted, torch.zeros(steps), seen.roll(-1, 0), torch.zeros(steps).bool(),
                        torch.arange(steps) // 50)  # fmt: skip


def test_the_compression_is_gatos():
    x = torch.tensor([-256.0, -1.0, 0.0, 0.5, 256.0])
    wanted = np.sign(x) * np.log1p(100 * np.abs(x)) / np.log1p(100 * 256)
    np.testing.assert_allclose(mu_law(x), wanted, rtol=1e-6)
    torch.testing.assert_close(mu_law_inverse(mu_law(x)), x)


def test_what_is_encoded_is_decoded_to_within_a_bin():
    data = log()
    tokenizer = ComponentTokenizer(SEEN, ACTED, bins=1024).fit(data)
    ids = tokenizer.encode(data.observations, data.actions)
    assert ids.shape == (200, 5)
    assert 0 <= int(ids.min()) <= int(ids.max()) < 1024
    seen, acted = tokenizer.decode(ids)
    assert (acted - data.actions).abs().max() <= 4 / 1024 / 2 + 1e-5
    standard = (data.observations - tokenizer.mean) / tokenizer.std
    # A bin of the compressed number is this wide where the number is x.
    width = 2 / 1024 * np.log1p(100 * 256) * (1 / 100 + standard.abs())
    assert ((seen - data.observations).abs() / tokenizer.std <= width).all()
    assert torch.equal(tokenizer.encode(seen, acted), ids)


def test_sensors_are_standardised_by_what_was_seen():
    data = log()
    tokenizer = ComponentTokenizer(SEEN, ACTED).fit(data)
    whole = torch.cat([one.observations for one in data])
    torch.testing.assert_close(tokenizer.mean, whole.mean(0))
    torch.testing.assert_close(tokenizer.std, whole.std(0))
    torch.testing.assert_close(tokenizer.standardised(whole).std(0), torch.ones(3))


def test_states_alone_and_extremes():
    tokenizer = ComponentTokenizer(SEEN, ACTED, bins=8)
    assert tokenizer.encode(torch.zeros(4, 3)).shape == (4, 3)
    far = tokenizer.encode(torch.tensor([[1e9, -1e9, 0.0]]), torch.tensor([[2.0, 0.0]]))
    assert far.tolist() == [[7, 0, 4, 7, 0]]


def test_more_bins_lose_less():
    data = log()
    errors = []
    for bins in (16, 64, 256):
        tokenizer = ComponentTokenizer(SEEN, ACTED, bins=bins, mu=10, limit=10).fit(data)
        seen, _ = tokenizer.decode(tokenizer.encode(data.observations, data.actions))
        errors.append(float(((seen - data.observations) / tokenizer.std).square().mean()))
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


def broken(index):
    seen = torch.zeros(4, 3)
    seen[1, index] = torch.nan
    return seen


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ComponentTokenizer(Discrete(3), ACTED), r"observation_space must be a flat Box"),
        (lambda: ComponentTokenizer(Dict({}), ACTED), r"observation_space must be a flat Box"),
        (lambda: ComponentTokenizer(Box(0, 1, (3, 3)), ACTED), r"observation_space must be a flat Box"),
        (lambda: ComponentTokenizer(SEEN, Discrete(3)), r"action_space must be a flat Box"),
        (lambda: ComponentTokenizer(SEEN, SEEN), r"action_space must have bounds"),
        (lambda: ComponentTokenizer(SEEN, ACTED, bins=1), r"bins must be at least 2, got 1"),
        (lambda: ComponentTokenizer(SEEN, ACTED, mu=0), r"mu and limit must be above 0, got 0"),
        (lambda: ComponentTokenizer(SEEN, ACTED).encode(torch.zeros(4, 2)), r"observations must have 3 .* \(4, 2\)"),
        (lambda: ComponentTokenizer(SEEN, ACTED).encode(torch.zeros(4, 3), torch.zeros(4, 3)), r"actions must have 2"),
        (lambda: ComponentTokenizer(SEEN, ACTED).encode(broken(1)), r"observations must hold no NaN"),
        (lambda: ComponentTokenizer(SEEN, ACTED).fit([]), r"dataset must hold at least one episode"),
        (lambda: ComponentTokenizer(Box(0, 1, (4,)), ACTED).fit(log()), r"observations must have 4 components"),
        (lambda: ComponentTokenizer(SEEN, ACTED, bins=8).decode(torch.full((2, 5), 8)), r"ids must be .* 0 to 7"),
        (lambda: ComponentTokenizer(SEEN, ACTED).decode(torch.zeros(2, 4).long()), r"ids must be \(\*any, 5\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
