import pytest
import torch

from everyformer.papers.pasta import OBJECTIVES, Windows, WindowSampler, pretrain, pretraining_loss
from everyformer.papers.pasta.objectives import MASKED, draw_masks


def masks(name, batch=400, steps=4, state=4, action=2, progress=0.5):
    generator = torch.Generator().manual_seed(0)
    return draw_masks(OBJECTIVES[name], batch, steps, state, action, progress=progress, generator=generator)


def test_random_masks_hide_their_share_and_never_nothing():
    hidden, told = masks("c-bert", batch=2000)
    assert torch.equal(hidden, told)
    assert hidden.flatten(1).any(1).all()
    assert hidden.float().mean() == pytest.approx(MASKED, abs=0.01)
    assert len(hidden.float().mean(0).unique()) > 1


def test_after_some_token_all_is_hidden_in_mtms_masks():
    hidden, _ = masks("c-mtm")
    flat = hidden.flatten(1)
    assert flat[:, -1].all()
    assert not flat.all(1).any()
    lengths = flat.flip(1).long().cumprod(1).sum(1)  # of the hidden end
    assert lengths.min() <= 2
    assert lengths.max() >= 20
    assert masks("mtm", state=1, action=1)[0].flatten(1)[:, -1].all()


def test_smarts_masks_are_its_three_tasks():
    hidden, told = masks("c-smart")
    assert not (told & ~hidden).any()
    assert told.flatten(1).any(1).all()
    is_state = torch.tensor([True] * 4 + [False] * 2)
    seen = (~hidden).flatten(2)
    forward = (told & is_state).any((1, 2))
    for window, asked in zip(seen[forward], told[forward], strict=True):
        (now,) = window.any(1).nonzero().flatten().tolist()  # one step is seen, whole
        assert window[now].all()
        assert asked.nonzero()[:, 0].unique().tolist() == [now + 1]
        assert asked[now + 1].tolist() == is_state.tolist()
    inverse = ~forward & (seen.any(2).sum(1) == 2) & (seen.sum((1, 2)) == 8) & (told.sum((1, 2)) == 2)
    assert inverse.sum() > 80
    for window, asked in zip(seen[inverse], told[inverse], strict=True):
        now = int(asked.any(1).nonzero())
        if window[now].tolist() == window[now + 1].tolist() == is_state.tolist():
            assert asked[now].tolist() == (~is_state).tolist()
    shares = [float(masks("c-smart", progress=progress)[0].float().mean()) for progress in (0.0, 0.5, 1.0)]
    assert shares[0] < shares[1] < shares[2]


def test_a_causal_loss_is_of_the_next_token(build, log):
    model = build("c-gpt")
    windows = WindowSampler(log, 4).draw(3, torch.Generator().manual_seed(0))
    ids = model.tokenizers[0].encode(windows.observations, windows.actions).flatten(1)
    logits = model.logits(model(windows.observations, windows.actions))
    wanted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(pretraining_loss(model, windows, torch.Generator()), wanted)


def test_masked_losses_are_of_hidden_tokens_alone(build, log):
    windows = WindowSampler(log, 4).draw(3, torch.Generator().manual_seed(0))
    for name in ("m-bert", "c-bert"):
        model = build(name, value="continuous")
        state, action = model.slots()
        generator = torch.Generator().manual_seed(1)
        hidden, _ = draw_masks(OBJECTIVES[name], 3, 4, state, action, progress=1.0, generator=generator)
        seen, acted = model.fill(windows.observations, windows.actions, hidden)
        tokenizer = model.tokenizers[0]
        error = ((seen - windows.observations) / tokenizer.std).square(), (acted - windows.actions).square()
        if name == "c-bert":
            wanted = torch.cat(error, -1)[hidden].mean()
        else:
            wanted = torch.stack([part.mean(-1) for part in error], -1)[hidden].mean()
        found = pretraining_loss(model, windows, torch.Generator().manual_seed(1))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_windows_come_from_within_episodes(log):
    sampler = WindowSampler(log, 20)
    assert len(sampler.starts) == 4 * 41
    found = sampler.draw(500, torch.Generator().manual_seed(0))
    assert found.observations.shape == (500, 20, 4)
    steps = found.observations[:, 1:] - found.observations[:, :-1]
    assert steps.abs().max() < 0.2  # the wheel never jumps


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_learned(objective, build, log):
    model = build(objective)
    losses = pretrain(model, log, steps=60, batch=8, rate=5e-3)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert not model.training


def test_numbers_themselves_can_be_learned(build, log):
    losses = pretrain(build("c-bert", value="continuous"), log, steps=60, batch=8, rate=5e-3)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_trained_model_fills_in_what_it_was_not_shown(build, log):
    model = build("c-bert")
    pretrain(model, log, steps=180, batch=16, rate=5e-3)
    windows = WindowSampler(log, 4).draw(64, torch.Generator().manual_seed(9))
    hidden = torch.zeros(64, 4, 6, dtype=torch.bool)
    hidden[:, -1, 2] = True
    found, _ = model.fill(windows.observations, windows.actions, hidden)
    error = (found[:, -1, 2] - windows.observations[:, -1, 2]).square().mean()
    assert error < 0.25 * windows.observations[:, -1, 2].var()


def test_several_domains_take_turns(two, log, monkeypatch):
    from everyformer.papers.pasta import objectives

    turns = []

    def seen(model, windows, generator, **options):
        turns.append(windows.domain)
        return pretraining_loss(model, windows, generator, **options)

    monkeypatch.setattr(objectives, "pretraining_loss", seen)
    small = type(log)(
        log.observations[:, :3], log.actions[:, :1], log.rewards, log.following[:, :3], log.terminated, log.episode
    )
    losses = pretrain(two(), {"wheel": log, "tricycle": small}, steps=6, batch=4)
    assert len(losses) == 6
    assert turns == ["wheel", "tricycle"] * 3


def test_bad_input_is_named(build, two, log):
    calls = [
        (lambda: WindowSampler(log, 61), r"dataset must hold an episode of at least 61 steps"),
        (lambda: WindowSampler([], 2), r"got none"),
        (
            lambda: pretrain(two(), {"wheel": log}, steps=1),
            r"datasets must be of the domains wheel, tricycle, got wheel",
        ),
        (
            lambda: pretraining_loss(
                build(), Windows(log.observations[None, :5], log.actions[None, :5]), torch.Generator()
            ),
            r"at most 4 steps, got 5",
        ),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
