import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.ftp import FutureTokenPredictor, future_loss, sampled_positions
from everyformer.papers.ftp.model import law, verified


def small(**changes):
    torch.manual_seed(0)
    sizes = {"vocabulary": 7, "dim": 16, "depth": 2, "heads": 2, "ahead": 4, "pseudo": 3, "decoder_depth": 2}
    return FutureTokenPredictor(**(sizes | {"longest": 64} | changes))


def sharp(**changes):
    """A model with unequal laws, so that drafts are often turned down."""
    model = small(**changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return model.eval()


def every_place(tokens):
    return torch.arange(tokens.shape[1] - 1).expand(len(tokens), -1)


def test_the_loss_is_the_weighted_sum_over_places_and_distances():
    model, tokens, gamma = sharp(), torch.randint(7, (2, 9)), 0.7
    total, weight = 0.0, 0.0
    for row in range(2):
        for place in range(8):
            state = model.embed(tokens[row : row + 1, : place + 1])[:, -1]
            following = tokens[row : row + 1, place + 1 : place + 1 + model.ahead]
            logits = model.decode(state, following[:, :-1])[0]
            for distance, token in enumerate(following[0]):
                total += gamma**distance * float(F.cross_entropy(logits[distance], token).detach())
                weight += gamma**distance
    found = future_loss(model, tokens, every_place(tokens), gamma=gamma)
    assert float(found.detach()) == pytest.approx(total / weight, rel=1e-5)


def test_forward_is_the_first_step_of_the_decoder():
    model, tokens = sharp(), torch.randint(7, (2, 6))
    states = model.embed(tokens)
    longer = model.decode(states[:, 2], tokens[:, 3:6])
    torch.testing.assert_close(model(tokens)[:, 2], longer[:, 0])


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(2, 9), st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_shapes_and_gradients_of_every_parameter(ahead, pseudo, batch, length, positions):
    model = small(ahead=ahead, pseudo=pseudo)
    tokens = torch.randint(7, (batch, length))
    assert model(tokens).shape == (batch, length, 7)
    assert model.embed(tokens).shape == (batch, length, 16)
    future_loss(model, tokens, sampled_positions(batch, length - 1, min(positions, length - 1))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_nothing_of_the_past_reaches_the_decoder_but_the_state():
    model, tokens = sharp(), torch.randint(7, (1, 8))
    changed = tokens.clone()
    changed[0, 6] = (tokens[0, 6] + 1) % 7
    torch.testing.assert_close(model(tokens)[:, :6], model(changed)[:, :6])
    assert not torch.allclose(model(tokens)[:, 6], model(changed)[:, 6])
    state = torch.randn(1, 16)
    other = tokens[:, :3].clone()
    other[0, 2] = (other[0, 2] + 1) % 7
    first, second = model.decode(state, tokens[:, :3]), model.decode(state, other)
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3], second[:, 3])


def test_embedding_and_head_share_their_weights():
    model = small()
    assert model.encoder.head.weight is model.encoder.embedding.weight
    again = small()
    again.load_state_dict(sharp().state_dict(), strict=True)


def test_positions_are_different_places_by_torchs_generator():
    torch.manual_seed(3)
    found = sampled_positions(5, 9, 4)
    torch.manual_seed(3)
    assert torch.equal(found, sampled_positions(5, 9, 4))
    assert all(len(set(row)) == 4 and min(row) >= 0 and max(row) < 9 for row in found.tolist())
    assert sampled_positions(2, 6, 6).sort(1).values.tolist() == [list(range(6))] * 2


@torch.no_grad()
def without_cache(model, prompt, count, draft):
    """The likeliest tokens, all read anew for each."""
    while count > 0:
        state, written = model.embed(prompt)[:, -1], prompt[:, :0]
        for _ in range(min(draft, count)):
            written = torch.cat([written, model.decode(state, written)[:, -1:].argmax(-1)], dim=1)
        prompt, count = torch.cat([prompt, written], dim=1), count - written.shape[1]
    return prompt


@pytest.mark.parametrize("draft", [1, 3, 4])
def test_writing_with_caches_is_writing_without(draft):
    model, prompt = sharp(), torch.randint(7, (3, 5))
    assert torch.equal(model.generate(prompt, 10, draft=draft, temperature=0), without_cache(model, prompt, 10, draft))


@pytest.mark.parametrize("draft", [1, 2, 4])
def test_the_likeliest_tokens_are_the_same_with_checked_drafts(draft):
    for seed in range(3):
        model, prompt = sharp(), torch.randint(7, (1, 4), generator=torch.Generator().manual_seed(seed))
        found = model.speculate(prompt, 17, draft=draft, temperature=0)
        assert torch.equal(found.tokens, model.generate(prompt, 17, temperature=0))
        assert found.passes == 17 if draft == 1 else -(-17 // draft) <= found.passes <= 17


def exact(model, prompt, count, temperature):
    """Probabilities of all continuations, (vocabulary ** count,)."""
    laws, rows = torch.ones(1), prompt
    for _ in range(count):
        following = law(model(rows)[:, -1], temperature)
        laws = (laws[:, None] * following).flatten()
        rows = torch.cat([rows.repeat_interleave(7, 0), torch.arange(7).repeat(len(rows))[:, None]], dim=1)
    return laws


@torch.no_grad()
def test_checked_drafts_have_the_law_of_single_tokens_and_unchecked_ones_do_not():
    model, prompt, count, draws = sharp(), torch.tensor([[1, 2, 3]]), 3, 1000
    wanted = exact(model, prompt, count, 1.3).view(7, 7, 7).sum(0).flatten()  # the second and third token
    generator = torch.Generator().manual_seed(0)
    found, passes = torch.zeros(49), 0
    for _ in range(draws):
        one = model.speculate(prompt, count, draft=3, temperature=1.3, generator=generator)
        found[one.tokens[0, -2] * 7 + one.tokens[0, -1]] += 1
        passes += one.passes
    assert draws < passes < 3 * draws  # some tokens of drafts are kept and some are not
    assert statistic(found, wanted) < limit()
    free = model.generate(prompt.expand(draws, -1), count, draft=3, temperature=1.3, generator=generator)
    assert statistic(torch.bincount(free[:, -2] * 7 + free[:, -1], minlength=49), wanted) > limit()
    plain = model.generate(prompt.expand(draws, -1), count, temperature=1.3, generator=generator)
    assert statistic(torch.bincount(plain[:, -2] * 7 + plain[:, -1], minlength=49), wanted) < limit()


def statistic(found, wanted):
    """Chi-square over the cells that are expected five times or more, the others in one."""
    expected = wanted * found.sum()
    common = expected >= 5
    cells = torch.cat([found[common], found[~common].sum()[None]]).float()
    hopes = torch.cat([expected[common], expected[~common].sum()[None]])
    return float(((cells - hopes) ** 2 / hopes.clamp(min=1e-9)).sum())


@functools.cache
def limit():
    """The 0.9999 quantile of chi-square with as many degrees of freedom as there are cells (above what is needed)."""
    draws = torch.distributions.Chi2(torch.tensor(49.0)).sample((400_000,))
    return float(draws.sort().values[-40])


@given(st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_the_rule_keeps_the_law_for_any_guesses(seed):
    generator = torch.Generator().manual_seed(seed)
    guess, truth = torch.rand(2, 5, generator=generator).square().add(0.01).unbind()
    guess, truth, counts = guess / guess.sum(), truth / truth.sum(), torch.zeros(5)
    for _ in range(3000):
        drafted = torch.multinomial(guess, 1, generator=generator)
        kept, other = verified(drafted, guess[None], truth[None], generator)
        counts[int(drafted if kept else other)] += 1
    assert float((counts / 3000 - truth).abs().sum()) / 2 < 0.05


def test_bfloat16_and_compile():
    model, tokens = small(), torch.randint(7, (2, 9))
    compiled = torch.compile(lambda tokens, places: future_loss(model, tokens, places), backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, every_place(tokens)), future_loss(model, tokens, every_place(tokens)))
    half = small().bfloat16()
    future_loss(half, tokens, every_place(tokens)).backward()
    assert half.expand.weight.grad.dtype == torch.bfloat16
    assert half.generate(tokens, 6, draft=3).shape == (2, 15)
    assert half.speculate(tokens[:1], 6).tokens.shape == (1, 15)


@pytest.mark.parametrize("name", ["ahead", "pseudo", "decoder_depth"])
def test_sizes_below_one_are_named(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        small(**{name: 0})


@pytest.mark.parametrize("write", ["generate", "speculate"])
@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([[0, 7]], {}, "prompt must hold tokens from 0 to 6, got 0 to 7"),
        ([[]], {}, "prompt must be whole numbers"),
        ([[0, 1]], {"count": 63}, r"at most longest 64, got 2 \+ 63"),
        ([[0, 1]], {"count": 0}, "count must be at least 1"),
        ([[0, 1]], {"draft": 5}, "draft must be from 1 to ahead 4, got 5"),
        ([[0, 1]], {"draft": 0}, "draft must be from 1 to ahead 4, got 0"),
        ([[0, 1]], {"temperature": -0.5}, "temperature must be at least 0, got -0.5"),
    ],
)
def test_bad_requests_are_named(write, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(small(), write)(torch.tensor(prompt), **({"count": 3} | options))


def test_other_bad_input_is_named():
    model, tokens = small(), torch.randint(7, (2, 9))
    with pytest.raises(ValueError, match="prompt must be one row"):
        model.speculate(tokens, 3)
    with pytest.raises(ValueError, match="tokens must hold tokens from 0 to 6"):
        model.embed(tokens + 7)
    with pytest.raises(ValueError, match="at most longest 64, got 65"):
        model.embed(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ValueError, match="written must hold fewer than ahead 4 tokens, got 4"):
        model.decode(torch.zeros(2, 16), tokens[:, :4])
    with pytest.raises(ValueError, match="gamma must be above 0"):
        future_loss(model, tokens, every_place(tokens), gamma=0.0)
    with pytest.raises(ValueError, match="positions must be from 0 to 7"):
        future_loss(model, tokens, torch.full((2, 1), 8))
    with pytest.raises(ValueError, match="count must be from 1 to length 3, got 4"):
        sampled_positions(2, 3, 4)
