import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from everyformer.papers.joint_sampling import JointSampler, MaskedDiffusionLM, dream_schedule, generate
from everyformer.papers.joint_sampling.generation import ORDERS
from everyformer.parts.language import LanguageModel


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_p": 0.7, "temperature": 0.5}])
def test_one_token_per_pass_is_the_base_bit_for_bit(base, sampler, order, options):
    both = [
        generate(base, with_, length=16, batch=4, tokens_per_pass=1, order=order, generator=seeded(), **options)
        for with_ in (None, sampler)
    ]
    assert torch.equal(both[0].sequences, both[1].sequences)
    assert torch.equal(both[0].positions, both[1].positions)
    assert both[1].sampler_passes == 0 and both[1].full_passes == 16


def test_one_token_per_pass_draws_from_the_base_conditionals(base):
    """Each token is the inverse of its cumulative probability, given all that was visible then, at its chance."""
    out = generate(base, length=8, batch=3, tokens_per_pass=1, generator=seeded())
    chances, priority = torch.rand(2, 3, 8, generator=seeded())
    assert torch.equal(out.positions, priority.argsort(1, descending=True))
    for number, before in enumerate([torch.full((3, 8), 10), *out.history[:-1]]):
        logits = base(before)
        logits[..., 10] = -math.inf
        for row, position in enumerate(out.positions[:, number].tolist()):
            cumulative = logits[row, position].softmax(-1).cumsum(-1)
            token = int((cumulative <= chances[row, position]).sum())
            assert int(out.sequences[row, position]) == token


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tokens_per_pass", [2, 3, 16])
def test_an_untrained_sampler_is_marginal_sampling(base, untrained, order, tokens_per_pass):
    both = [
        generate(base, with_, length=16, batch=5, tokens_per_pass=tokens_per_pass, order=order, generator=seeded())
        for with_ in (None, untrained)
    ]
    assert torch.equal(both[0].sequences, both[1].sequences)
    assert torch.equal(both[0].history, both[1].history)
    assert both[0].sampler_passes == 0 and both[1].sampler_passes == 16 - math.ceil(16 / tokens_per_pass)


def test_a_sampler_changes_what_follows_the_first_token_of_a_pass_only(base, sampler):
    out = [
        generate(base, with_, length=6, batch=64, tokens_per_pass=6, generator=seeded()) for with_ in (None, sampler)
    ]
    first, second = (x.sequences.gather(1, x.positions) for x in out)
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.equal(first[:, 1], second[:, 1])


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    length=st.integers(2, 20),
    tokens_per_pass=st.integers(1, 9),
    order=st.sampled_from(ORDERS),
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_visible_tokens_never_change_and_passes_are_counted(data, length, tokens_per_pass, order, temperature):
    torch.manual_seed(0)
    base = MaskedDiffusionLM(vocabulary=7, dim=8, depth=1, heads=2, mask_token=3, longest=20)
    sampler = JointSampler.from_base(base)
    nn.init.normal_(sampler.leave.weight)
    masked = data.draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=2, max_size=2))
    masked = torch.tensor(masked)
    masked[0, 0] = True
    prompt = torch.tensor([0, 1, 2, 4, 5, 6])[torch.randint(6, (2, length))].masked_fill(masked, 3)
    most = int(masked.sum(1).max())
    tokens_per_pass = min(tokens_per_pass, most)
    out = generate(
        base, sampler, prompt, infill=True, tokens_per_pass=tokens_per_pass, order=order, temperature=temperature
    )
    assert torch.equal(out.sequences[~masked], prompt[~masked])
    assert not bool((out.sequences == 3).any())
    assert out.full_passes == math.ceil(most / tokens_per_pass)
    assert out.sampler_passes == most - out.full_passes
    assert torch.equal(out.rank >= 0, masked)
    assert torch.equal(out.history[-1], out.sequences)


def test_the_stream_shows_how_text_fills_in(base, sampler):
    seen = []
    out = generate(base, sampler, torch.tensor([[1, 2]]), length=12, tokens_per_pass=4, stream=seen.append)
    assert torch.equal(torch.stack(seen), out.history)
    assert [int((tokens == 10).sum()) for tokens in seen] == [6, 2, 0]


def test_a_narrow_nucleus_is_the_likeliest_token(base):
    options = {"length": 12, "batch": 3, "tokens_per_pass": 1}
    nucleus = generate(base, top_p=1e-6, generator=seeded(), **options)
    greedy = generate(base, temperature=0.0, generator=seeded(), **options)
    assert torch.equal(nucleus.sequences, greedy.sequences)


def test_dreams_schedule_places_all():
    assert dream_schedule(10, 4) == [2, 2, 2, 4]
    assert sum(dream_schedule(3, 8)) == 3 and min(dream_schedule(3, 8)) >= 1
    with pytest.raises(ValueError, match="masked and steps must be at least 1, got 0 and 4"):
        dream_schedule(0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens_per_pass": 0}, "tokens_per_pass must be at least 1, got 0"),
        ({"tokens_per_pass": [4, 5]}, r"tokens_per_pass must be at least 1 each and 8 together, got \[4, 5\]"),
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"temperature": math.nan}, "temperature must be at least 0, got nan"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"order": "left"}, "order must be one of random, confidence, entropy, margin, got 'left'"),
        ({"length": 25}, "length must be from the prompt's 0 to the base's 24 positions, got 25"),
        ({"length": None}, "length must be given where there is no prompt"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"prompt": torch.tensor([[1, 10]])}, "prompt must not hold the mask token 10 unless infill=True"),
        ({"prompt": torch.tensor([[1, 11]])}, "prompt must hold tokens from 0 to 10, got 1 to 11"),
        ({"prompt": torch.ones(1, 8, dtype=torch.long)}, "length must leave something to fill, got 8"),
        ({"prompt": torch.ones(1, 9, dtype=torch.long)}, "length must be from the prompt's 9 to"),
        ({"prompt": torch.tensor([[1]]), "length": None}, "length must be given unless infill=True"),
    ],
)
def test_what_cannot_be_done_is_said(base, options, message):
    with pytest.raises(ValueError, match=message):
        generate(base, **{"length": 8, **options})


def test_more_tokens_per_pass_than_masks_are_clipped_with_a_warning(base):
    with pytest.warns(UserWarning, match="tokens_per_pass 9 clipped to the 8 masked positions"):
        assert generate(base, length=8, tokens_per_pass=9).full_passes == 1


def test_bases_that_cannot_be_used_are_named(base):
    causal = LanguageModel(vocabulary=11, dim=32, depth=1, heads=2)
    with pytest.raises(ValueError, match="base must see both sides, got a causal LanguageModel"):
        generate(causal, length=8)
    with pytest.raises(TypeError, match="base must be a MaskedDiffusionLM or TransformersMaskedLM, got Linear"):
        generate(nn.Linear(2, 2), length=8)
    other = MaskedDiffusionLM(vocabulary=12, dim=32, depth=1, heads=2, kv_heads=1, mask_token=10, longest=24)
    with pytest.raises(ValueError, match="sampler must fit the base: its vocabulary is 12, the base's 11"):
        generate(base, JointSampler.from_base(other), length=8)
    other = MaskedDiffusionLM(vocabulary=11, dim=16, depth=1, heads=2, mask_token=10)
    with pytest.raises(ValueError, match="sampler must fit the base: its dim is 16, the base's 32"):
        generate(base, JointSampler.from_base(other), length=8)
