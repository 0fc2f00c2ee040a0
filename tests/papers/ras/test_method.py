import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from everyformer.papers.ras import RegionSelector, Sampling, Schedule, TokenCache, draw_updates

HERE = Path(__file__).parent


def noise(batch=2, channels=3, side=8):
    return torch.randn(batch, channels, side, side)


def test_shares_are_dense_first_dense_at_resets_and_the_ratio_elsewhere():
    schedule = Schedule(0.5, dense_steps=2, reset_steps=(4,))
    assert schedule.shares(6) == [1.0, 1.0, 0.5, 0.5, 1.0, 0.5]
    assert schedule.bound(6) == pytest.approx(6 / 4.5)
    assert Schedule(0.5, dense_steps=9).shares(3) == [1.0] * 3
    assert Schedule((0.75, 0.25), dense_steps=1, reset_steps=(2,)).shares(5) == [1.0, 0.75, 1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_ratio": 0.0}, r"sample_ratio must be in \(0, 1\].*got 0.0"),
        ({"sample_ratio": 1.01}, "got 1.01"),
        ({"sample_ratio": float("nan")}, "got nan"),
        ({"sample_ratio": (0.5, 2.0)}, r"got \(0.5, 2.0\)"),
        ({"sample_ratio": (0.5,)}, "or a pair of such numbers"),
        ({"dense_steps": 0}, "dense_steps must be at least 1, got 0"),
        ({"reset_steps": (-1,)}, r"reset_steps must be 0 or more, got \(-1,\)"),
    ],
)
def test_schedules_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**arguments)


def test_a_reset_step_outside_the_schedule_is_named():
    with pytest.raises(ValueError, match=r"reset_steps must be below the number of steps, 8, got \[8, 9\]"):
        Schedule(reset_steps=(3, 8, 9)).shares(8)


def test_scores_are_means_over_patches_of_what_varies_over_channels():
    x = noise()
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2)  # batch, channels, rows, columns, 2, 2
    expected = patches.std(1).mean((-1, -2)).flatten(1)
    torch.testing.assert_close(RegionSelector().scores(x, 2), expected)
    norms = patches.square().sum(1).sqrt().mean((-1, -2)).flatten(1)
    torch.testing.assert_close(RegionSelector(metric="l2norm").scores(x, 2), norms)


def by_hand(scores, counts, starvation, active, high_ratio):
    """The rule, one token at a time."""
    weighted = [
        float(score * torch.exp(torch.tensor(starvation * count))) for score, count in zip(scores, counts, strict=True)
    ]
    ranked = sorted(range(len(weighted)), key=weighted.__getitem__)
    low = int((len(ranked) - active) * (1 - high_ratio))
    return sorted(ranked[low : low + active])


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=st.integers(1, 3),
    share=st.floats(0, 1),
    high_ratio=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    starvation=st.sampled_from([-0.5, 0.0, 0.1, 1.0]),
    metric=st.sampled_from(["std", "l2norm"]),
)
def test_every_image_has_its_own_tokens_by_the_rule(batch, rows, columns, patch, share, high_ratio, starvation, metric):
    selector = RegionSelector(metric=metric, starvation=starvation, high_ratio=high_ratio)
    tokens = rows * columns
    active = max(1, round(share * tokens))
    counts = [[0] * tokens for _ in range(batch)]
    for _ in range(3):
        x = torch.randn(batch, 2, rows * patch, columns * patch)
        chosen = selector.select(x, patch, active)
        scores = selector.scores(x, patch)
        for image in range(batch):
            expected = by_hand(scores[image], counts[image], starvation, active, high_ratio)
            assert chosen[image].tolist() == expected
            counts[image] = [n + (token not in expected) for token, n in enumerate(counts[image])]
    assert selector.skipped.tolist() == counts


@pytest.mark.parametrize(("high_ratio", "starvation"), [(0.0, 0.3), (1.0, -0.3)])
def test_nobody_starves(high_ratio, starvation):
    """The same noise again and again: with the weight every token runs at times, without it the same ones always."""
    x = noise(1)
    for scale, everyone in ((starvation, True), (0.0, False)):
        selector = RegionSelector(starvation=scale, high_ratio=high_ratio)
        ran = {token for _ in range(40) for token in selector.select(x, 2, 4)[0].tolist()}
        assert (len(ran) == 16) is everyone


def test_a_new_batch_or_a_reset_starts_the_counts_anew():
    selector = RegionSelector()
    selector.select(noise(2), 2, 4)
    selector.select(noise(3), 2, 4)
    assert selector.skipped.sum(1).tolist() == [12] * 3
    selector.reset()
    assert selector.skipped is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "mean"}, "metric must be 'std' or 'l2norm', got 'mean'"),
        ({"starvation": float("inf")}, "starvation must be finite, got inf"),
        ({"high_ratio": 1.5}, r"high_ratio must be in \[0, 1\], got 1.5"),
    ],
)
def test_selectors_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        RegionSelector(**arguments)


def test_noise_that_cannot_be_scored():
    with pytest.raises(ValueError, match="patch must divide the sides of noise, got patch=3 and 8 x 8"):
        RegionSelector().select(noise(), 3, 1)
    with pytest.raises(ValueError, match="at least 2 channels, got 1; use 'l2norm'"):
        RegionSelector().select(noise(channels=1), 2, 1)
    for active in (0, 17):
        with pytest.raises(ValueError, match=f"active must be between 1 and the 16 tokens, got {active}"):
            RegionSelector().select(noise(), 2, active)


def test_the_choice_is_the_authors():
    """Tokens that the authors' scheduler leaves to run, over six steps of each setting."""
    about = json.loads((HERE / "authors.json").read_text(encoding="utf-8"))
    vectors = load_file(HERE / "authors.safetensors")
    for index, case in enumerate(about["selections"]):
        selector = RegionSelector(metric=case["metric"], starvation=case["starvation"], high_ratio=case["high_ratio"])
        chosen = vectors[f"chosen.{index}"]
        for step, expected in enumerate(chosen):
            found = selector.select(vectors[f"noise.{index}"][step : step + 1], case["patch"], len(expected))
            assert torch.equal(found[0], expected), (case, step)
    assert len(about["selections"]) == 4


def test_a_cache_is_renewed_where_tokens_are_active_and_nowhere_else():
    cache, keys, values = TokenCache(), torch.randn(2, 6, 3, 4), torch.randn(2, 6, 5)
    before = keys.clone(), values.clone()
    cache.store(key=keys, value=values)
    active = torch.tensor([[0, 4], [1, 5]])
    rows = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 5)
    found = cache.update(active, key=rows[0], value=rows[1])
    for full, old, new in zip(found, before, rows, strict=True):
        for image in range(2):
            for token in range(6):
                places = active[image].tolist()
                expected = new[image, places.index(token)] if token in places else old[image, token]
                assert torch.equal(full[image, token], expected)
    assert found[0].data_ptr() == keys.data_ptr()  # in place: nothing is copied
    cache.clear()
    with pytest.raises(ValueError, match="key of a batch of 2 must be stored"):
        cache.update(active, key=rows[0])
    cache.store(key=keys)
    with pytest.raises(ValueError, match="key of a batch of 4 must be stored"):
        cache.update(active.repeat(2, 1), key=rows[0].repeat(2, 1, 1, 1))


def test_skipped_tokens_keep_their_last_prediction_until_they_run():
    sampling = Sampling(Schedule(0.25, dense_steps=1, reset_steps=(4,)), RegionSelector(), 2)
    sampling.begin(6)
    outputs = torch.randn(6, 2, 3, 8, 8)
    kept = None
    for step in range(6):
        active = sampling.active
        assert (active is None) is (step in (0, 4))
        assert sampling.keeps is (step in (0, 4))
        completed = sampling.complete(outputs[step])
        for image in range(2):
            for token in range(16):
                place = (
                    image,
                    slice(None),
                    slice(token // 4 * 2, token // 4 * 2 + 2),
                    slice(token % 4 * 2, token % 4 * 2 + 2),
                )
                source = outputs[step] if active is None or token in active[image].tolist() else kept
                assert torch.equal(completed[place], source[place])
        kept = completed
    assert [int(step[0].sum()) for step in sampling.updates] == [16, 4, 4, 4, 16, 4]
    with pytest.raises(ValueError, match="the sampling has 6 steps and all were taken"):
        sampling.complete(outputs[0])


def test_the_number_of_tokens_follows_the_ratio_of_the_step():
    sampling = Sampling(Schedule((1.0, 0.1), dense_steps=1), RegionSelector(), 1)
    sampling.begin(4)
    for _ in range(4):
        sampling.complete(torch.randn(1, 2, 4, 4))
    assert [int(step.sum()) for step in sampling.updates] == [16, 16, 9, 2]


def test_pictures_of_updates_have_a_map_per_step():
    updates = [torch.rand(2, 3, 5) > 0.5 for _ in range(4)]
    picture = draw_updates(updates, image=1)
    assert picture.shape == (3, 4 * 6 - 1)
    assert torch.equal(picture[:, 6:11], updates[1][1].float())
    assert (picture[:, 5::6] == 0.5).all()
    for image in (-1, 2):
        with pytest.raises(ValueError, match=f"image must be one of the 2 that were sampled, got {image}"):
            draw_updates(updates, image)
    with pytest.raises(ValueError, match="one of the 0"):
        draw_updates([])


def test_a_selection_compiles():
    x = noise()
    expected = RegionSelector().select(x, 2, 5)
    compiled = torch.compile(lambda x: RegionSelector().select(x, 2, 5), backend="aot_eager")
    assert torch.equal(compiled(x), expected)
