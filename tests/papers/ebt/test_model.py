import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from everyformer.papers.ebt import EBT, S1, S2, ImageEBT, Recipe, ReplayBuffer, parameter_groups
from everyformer.papers.ebt.descent import thinking_schedule
from everyformer.papers.ebt.images import twice_differentiable_attention

KINDS = ("plain", "time_embed", "adaln", "adaln_zero")


def built(**options):
    torch.manual_seed(0)
    small = {"vocabulary": 11, "dim": 8, "depth": 2, "heads": 2, "longest": 16, "alpha": 1.0}
    return EBT(**{**small, **options})


def doubled_sequence(model, tokens, candidates, landscape):
    """The energies as the paper writes them: text and candidates as one sequence of twice the length, and a mask."""
    before, count = model.before, tokens.shape[1]
    condition = model._condition(len(tokens), landscape)
    x = torch.cat([*([condition[:, None]] if before else []), model.embedding(tokens), model.candidate(candidates)], 1)
    first = before + count
    places = torch.cat([torch.arange(first), before + torch.arange(1, count + 1)])
    sees = torch.zeros(first + count, first + count, dtype=torch.bool)
    sees[:first, :first] = torch.ones(first, first).tril()
    for number in range(count):
        sees[first + number, : before + number + 1] = True
        sees[first + number, first + number] = True
    for block in model.blocks:

        def attend(query, key, value):
            return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=sees)

        x = block._around(x, model.table[:, places], condition, attend)
    x = model.norm(x)[:, first:]
    if model.adaptive is not None:
        shift, scale = model.adaptive(condition).chunk(2, -1)
        x = x * (1 + scale[:, None]) + shift[:, None]
    return model.energy_head(x)[..., 0]


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(KINDS[:3]), st.integers(1, 3), st.integers(1, 9), st.integers(0, 1))
def test_two_streams_are_the_doubled_sequence(kind, batch, count, landscape):
    model = built(kind=kind)
    tokens, candidates = torch.randint(11, (batch, count)), torch.rand(batch, count, 11).softmax(-1)
    ours = model.energy(model.read(tokens), candidates, torch.arange(1, count + 1), landscape)
    torch.testing.assert_close(ours, doubled_sequence(model, tokens, candidates, landscape), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_no_position_knows_of_later_tokens_or_of_other_candidates(kind):
    model = built(kind=kind)
    tokens, candidates = torch.randint(11, (1, 6)), torch.rand(1, 6, 11)
    positions = torch.arange(1, 7)
    before = model.energy(model.read(tokens), candidates, positions)
    tokens[:, 3:], candidates[:, 1] = (tokens[:, 3:] + 1) % 11, 0.0
    after = model.energy(model.read(tokens), candidates, positions)
    same = torch.isclose(before, after, atol=1e-6)[0].tolist()
    assert same == [True, False, True, False, False, False]


@pytest.mark.parametrize("kind", KINDS[:3])
def test_gradients_through_the_walk_are_right_twice(kind):
    model = built(kind=kind, dim=4, depth=1, vocabulary=5).double()
    context = model.read(torch.randint(5, (1, 3)))
    positions = torch.arange(1, 4)
    candidates = torch.rand(1, 3, 5, dtype=torch.double, requires_grad=True)
    context = [[tuple(t.detach() for t in layer) for layer in layers] for layers in context]
    keys = context[0][0][0].requires_grad_()

    def energy(candidates, keys):
        return model.energy([[(keys, context[0][0][1])]], candidates, positions)

    assert torch.autograd.gradcheck(energy, (candidates, keys))
    assert torch.autograd.gradgradcheck(energy, (candidates, keys))


def test_gradients_of_the_image_energy_are_right_twice():
    torch.manual_seed(0)
    model = ImageEBT(image_size=4, patch=2, channels=1, dim=4, depth=1, heads=1, mlp_ratio=1.0).double()
    nn.init.normal_(model.energy_head.weight)
    nn.init.normal_(model.blocks[0].adaptive[1].weight)
    images = torch.randn(1, 1, 4, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(model.energy, images)
    assert torch.autograd.gradgradcheck(model.energy, images)


def test_the_fused_attention_of_the_processor_could_not_be_differentiated_twice():
    query = torch.randn(1, 1, 3, 4, requires_grad=True)
    fused = nn.functional.scaled_dot_product_attention(query, query, query)
    (slope,) = torch.autograd.grad(fused.sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        slope.square().sum().backward()
    (slope,) = torch.autograd.grad(twice_differentiable_attention(query, query, query).sum(), query, create_graph=True)
    slope.square().sum().backward()


@pytest.mark.parametrize(("kind", "recipe"), [*((kind, S1) for kind in KINDS), ("time_embed", S2)])
def test_training_lowers_the_loss(kind, recipe):
    model = built(kind=kind, dim=16, landscapes=2 if recipe is S1 else 1, recipe=dataclasses.replace(recipe, noise=0.1))
    optimiser = torch.optim.Adam(parameter_groups(model, lr=1e-2, multiplier=3.0))
    pieces = (torch.arange(9) % 3)[None].repeat(8, 1)
    first = float(model.loss(pieces).detach())
    for _ in range(30):
        optimiser.zero_grad()
        model.loss(pieces).backward()
        optimiser.step()
    assert float(model.loss(pieces).detach()) < 0.7 * first


def test_every_parameter_learns_and_alpha_at_its_own_rate():
    model = built(kind="adaln")
    model.loss(torch.randint(11, (4, 9))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    others, alpha = parameter_groups(model, lr=1e-3, multiplier=50.0)
    assert alpha["params"] == [model.alpha] and alpha["lr"] == pytest.approx(0.05) and alpha["weight_decay"] == 0.0
    assert len(others["params"]) == len(list(model.parameters())) - 1
    assert len(parameter_groups(built(learn_alpha=False), lr=1e-3, multiplier=50.0)) == 1


def test_only_the_last_slope_is_differentiated_twice_in_s2():
    walk = built(recipe=dataclasses.replace(S2, repeats=(3, 3)), landscapes=1)(torch.randint(11, (2, 5)))
    assert len(walk.energies) == 3
    assert [energies.requires_grad for energies in walk.energies] == [False, False, True]
    walk = built()(torch.randint(11, (2, 5)))
    assert [energies.requires_grad for energies in walk.energies] == [True, True]


def test_schedules():
    assert S2.schedule(1, random=False) == [0, 0, 0]
    assert Recipe(repeats=(1, 3)).schedule(3, random=False) == [0, 1, 2, 2, 2]
    drawn = {len(S2.schedule(1, random=True)) for _ in range(40)}
    assert drawn == {2, 3}
    assert thinking_schedule(2, None) == [0, 1] and thinking_schedule(2, 5) == [0, 1, 1, 1, 1]
    assert thinking_schedule(3, 1) == [0]


@pytest.mark.parametrize("kind", KINDS[:3])
def test_thinking_lowers_energy_and_takes_the_best_candidate(kind):
    model = built(kind=kind, alpha=0.02, start=2.0).eval()
    tokens = torch.randint(11, (3, 7))
    torch.manual_seed(1)
    one = model.think(tokens, steps=2)
    torch.manual_seed(1)
    longer = model.think(tokens, steps=12)
    assert longer.energy.mean() < one.energy.mean()
    assert len(longer.path) == 12
    torch.testing.assert_close(longer.path[1], one.logits)
    torch.manual_seed(1)
    best = model.think(tokens, steps=2, candidates=8)
    assert best.energy.mean() < one.energy.mean()
    assert best.logits.shape == (3, 7, 11) and not best.logits.requires_grad


def test_the_best_candidate_is_the_lowest_of_each_position():
    model = built().eval()
    tokens = torch.randint(11, (2, 4))
    torch.manual_seed(3)
    best = model.think(tokens, steps=1, candidates=3)
    torch.manual_seed(3)
    starts = torch.randn(2, 12, 11).unflatten(1, (3, 4))
    context, positions = model.read(tokens), torch.arange(1, 5)
    energies, logits = [], []
    for index in range(3):
        state = starts[:, index].softmax(-1).requires_grad_()
        (slope,) = torch.autograd.grad(model.energy(context, state, positions).sum(), state)
        logits.append((state - model.alpha * slope).detach())
        energies.append(model.energy(context, logits[-1].softmax(-1), positions).detach())
    low, which = torch.stack(energies).min(0)
    torch.testing.assert_close(best.energy, low)
    chosen = torch.stack(logits).gather(0, which[None, :, :, None].expand(1, -1, -1, 11))[0]
    torch.testing.assert_close(best.logits, chosen)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_generation_with_a_cache_is_generation_without(kind):
    model = built(kind=kind, start=0.0).eval()
    prompt = torch.randint(11, (2, 3))
    tokens = prompt
    for _ in range(5):
        tokens = torch.cat([tokens, model.think(tokens).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(prompt, 5, temperature=0), tokens)
    assert model.generate(prompt, 2, candidates=3, steps=4).shape == (2, 5)


def test_a_replay_buffer_keeps_the_newest_and_goes_on_from_them():
    model = built(landscapes=1, recipe=dataclasses.replace(S2, noise=0.0))
    buffer = ReplayBuffer(size=5, length=6, vocabulary=11)
    assert len(buffer.sample(3)[0]) == 0
    for number in range(3):
        model.loss(torch.full((2, 6), number), replay=buffer, replayed=2)
    assert sorted(buffer.tokens[:, 0].tolist()) == [0, 1, 1, 2, 2]
    tokens, logits = buffer.sample(10)
    assert tokens.shape == (5, 6) and logits.shape == (5, 5, 11) and logits.any()
    other = ReplayBuffer(size=5, length=6, vocabulary=11)
    other.load_state_dict(buffer.state_dict(), strict=True)
    assert torch.equal(other.logits, buffer.logits) and int(other.written) == 6
    buffer.keep(torch.full((7, 6), 9), torch.zeros(7, 5, 11))
    assert buffer.tokens.eq(9).all()


def test_zeroed_adaptive_norms_start_with_no_energy_and_learn():
    model = built(kind="adaln_zero")
    walk = model(torch.randint(11, (2, 5)))
    assert not walk.energies[0].any()
    assert built(kind="time_embed")(torch.randint(11, (2, 5))).energies[0].any()


@pytest.mark.parametrize("normalise", ["each", "first", "never"])
@pytest.mark.parametrize("tied", [True, False])
def test_ways_of_candidates(normalise, tied):
    model = built(normalise=normalise, tied=tied)
    assert (model.candidate is None) == tied
    model.loss(torch.randint(11, (2, 6))).backward()
    assert model.embedding.weight.grad.any()


def test_images_come_nearer_by_training():
    torch.manual_seed(0)
    model = ImageEBT(image_size=8, patch=4, channels=1, dim=16, depth=1, heads=1, alpha=500.0)
    optimiser = torch.optim.Adam(parameter_groups(model, lr=3e-3, multiplier=1000.0))
    clean = torch.ones(16, 1, 8, 8)
    noisy = clean + torch.randn(clean.shape)
    first = float(model.loss(noisy, clean).detach())
    for _ in range(60):
        optimiser.zero_grad()
        model.loss(noisy, clean).backward()
        optimiser.step()
    assert float(model.loss(noisy, clean).detach()) < 0.5 * first
    walk = model.eval().think(noisy, steps=3)
    assert len(walk.states) == 3 and not walk.states[-1].requires_grad


def test_random_step_sizes_only_in_training():
    model = built(recipe=Recipe(alpha_scale=4.0), start=0.0)
    tokens = torch.randint(11, (2, 5))
    assert not torch.equal(model(tokens).states[0], model(tokens).states[0])
    model.eval()
    assert torch.equal(model(tokens).states[0], model(tokens).states[0])


FIXED_S2 = dataclasses.replace(S2, noise=0.0, repeats=(2, 2), alpha_scale=1.0)


@pytest.mark.parametrize(
    "options", [{"landscapes": 1}, {"kind": "plain", "recipe": FIXED_S2, "landscapes": 1}], ids=["S1", "S2"]
)
def test_a_compiled_training_step_is_the_eager_one(options):
    model = built(start=0.0, depth=1, **options)
    pieces = torch.randint(11, (2, 7))
    model.loss(pieces).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compile(model.loss, backend="aot_eager", fullgraph=True)(pieces).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)


def test_a_compiled_energy_serves_thinking():
    model = built(start=0.0, depth=1, kind="plain", landscapes=1).eval()
    tokens = torch.randint(11, (2, 7))
    expected = model.think(tokens, steps=3).logits
    model.energy = torch.compile(model.energy, backend="aot_eager")
    torch.testing.assert_close(model.think(tokens, steps=3).logits, expected)


def test_bf16():
    model = built(dim=16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(torch.randint(11, (4, 9)))
    loss.backward()
    assert loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in model.parameters())
    whole = built(dim=16).bfloat16().eval()
    assert whole.think(torch.randint(11, (2, 5)), candidates=2).logits.isfinite().all()


BAD = [
    (lambda: built(kind="adaLN"), "kind must be one of plain, time_embed, adaln, adaln_zero, got 'adaLN'"),
    (lambda: built(normalise="last"), "normalise must be one of each, first, never, got 'last'"),
    (lambda: built(alpha=0.0), "alpha must be above 0, got 0.0"),
    (lambda: built(landscapes=0), "landscapes must be at least 1, got 0"),
    (lambda: built(start=-1.0), "start must be at least 0, got -1.0"),
    (lambda: built(dim=10, heads=4), "dim must be a multiple of heads 4, got 10"),
    (lambda: built()(torch.full((1, 3), 11)), "tokens must hold tokens from 0 to 10, got 11 to 11"),
    (lambda: built()(torch.zeros(1, 17, dtype=torch.long)), "tokens must be at most longest 16, got 17"),
    (lambda: built()(torch.zeros(1, 3, dtype=torch.long), initial=torch.zeros(1, 3, 9)), r"initial must be .*9\)"),
    (
        lambda: built().energy(built().read(torch.zeros(1, 1, dtype=torch.long)), torch.zeros(1, 1, 9), torch.ones(1)),
        "candidates must have vocabulary 11 in the end, got 9",
    ),
    (lambda: built().think(torch.zeros(1, 3, dtype=torch.long), steps=0), "steps must be at least 1, got 0"),
    (lambda: built().think(torch.zeros(1, 3, dtype=torch.long), candidates=0), "candidates must be at least 1, got 0"),
    (lambda: built().generate(torch.zeros(1, 3, dtype=torch.long), 14), r"at most longest 16, got 3 \+ 14"),
    (lambda: parameter_groups(nn.Linear(1, 1), 1e-3, 2.0), "model must have a parameter alpha, got Linear"),
    (lambda: parameter_groups(built(), 0.0, 2.0), "lr must be above 0, got 0.0"),
    (lambda: parameter_groups(built(), 1e-3, -1.0), "multiplier must be above 0, got -1.0"),
    (lambda: Recipe(noise=-1.0), "noise must be at least 0, got -1.0"),
    (lambda: Recipe(alpha_scale=0.5), "alpha_scale must be at least 1, got 0.5"),
    (lambda: Recipe(repeats=(2, 1)), r"repeats must be two numbers from 1 on, the fewest first, got \(2, 1\)"),
    (lambda: ReplayBuffer(0, 5, 11), "size must be at least 1, got 0"),
    (lambda: ReplayBuffer(2, 5, 11).keep(torch.zeros(1, 4), torch.zeros(1, 4, 11)), "tokens and logits must be"),
    (lambda: ImageEBT(image_size=9, patch=2), "image_size must be divisible by patch, got image_size=9 and patch=2"),
    (lambda: ImageEBT(image_size=8, patch=2, steps=0), "steps must be at least 1, got 0"),
    (lambda: ImageEBT(image_size=8, patch=2, alpha=-1.0), "alpha must be above 0, got -1.0"),
    (lambda: ImageEBT(image_size=8, patch=2, dim=12, heads=1).think(torch.zeros(1, 3, 8, 9)), "images must be"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
