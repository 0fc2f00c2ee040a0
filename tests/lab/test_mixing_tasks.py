import dataclasses

import pytest
import torch

from everyformer import mixers
from everyformer.lab import data, mixing_tasks
from everyformer.lab.measure import count_parameters
from everyformer.lab.mixing_samples import NAMES, listops, recall
from everyformer.lab.mixing_tasks import SIZES


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path)


def drawn(given, samples=50, seed=0, test=False):
    return given.draw(torch.Generator().manual_seed(seed), samples, test)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixing_tasks.task("recal", "smoke"), "did you mean recall"),
        (lambda: mixing_tasks.network("ful", recall(32, 4), SIZES["smoke"]), "did you mean full"),
    ],
)
def test_an_unknown_name_is_met_with_the_nearest(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_mixer_that_cannot_be_causal_does_no_task_that_hides_what_follows(monkeypatch):
    card = dataclasses.replace(mixers.cards()["full"], causal=False)
    monkeypatch.setattr(mixers, "cards", lambda: {"full": card})
    given = mixing_tasks.task("chars", "smoke")
    assert not mixing_tasks.fits("full", given) and mixing_tasks.fits("full", listops(32))
    with pytest.raises(ValueError, match="mixer must be able to be causal for task chars, got 'full'"):
        mixing_tasks.network("full", given, SIZES["smoke"])


@pytest.mark.parametrize("mixer", sorted(mixers.cards()))
@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_networks_of_all_mixers_are_of_a_size(mixer, scale):
    given = recall(64, pairs=8)
    size = SIZES[scale]
    counts = {name: count_parameters(mixing_tasks.network(name, given, size)) for name in ("full", mixer)}
    narrow = mixing_tasks.network(mixer, given, size).blocks[0].feed[0].out_features == size.dim // 4
    assert counts[mixer] >= 0.98 * counts["full"]
    assert narrow or counts[mixer] <= 1.02 * counts["full"]


def test_nothing_is_seen_before_its_time_where_what_follows_is_the_answer():
    given = mixing_tasks.task("chars", "smoke")
    model = mixing_tasks.network("full", given, SIZES["smoke"])
    tokens, _ = drawn(given, 2)
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 256
    assert torch.equal(model(tokens)[:, :20], model(changed)[:, :20])


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_network_is_kept_and_scored_alike(name):
    model = mixing_tasks.trained("full", name, "smoke", seed=0)
    again = mixing_tasks.trained("full", name, "smoke", seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    given = mixing_tasks.task(name, "smoke")
    assert mixing_tasks.score(model, given, 64) == mixing_tasks.score(again, given, 64)
    torch.manual_seed(0)
    untrained = mixing_tasks.network("full", given, SIZES["smoke"])
    batch = drawn(given)
    assert mixing_tasks.loss(model, batch) < mixing_tasks.loss(untrained, batch)


def test_seeds_and_rates_are_other_trainings():
    first = mixing_tasks.trained("full", "recall", "smoke", seed=0)
    for changed in ({"seed": 1}, {"seed": 0, "rate": 1e-3}):
        other = mixing_tasks.trained("full", "recall", "smoke", **changed)
        assert not torch.equal(first.head.weight, other.head.weight)


def test_a_perfect_answer_scores_a_hundred():
    given = recall(32, pairs=4)
    answers = torch.nn.functional.one_hot(drawn(given, 64, mixing_tasks.TEST_SEED, True)[1].clamp(min=0), 16)

    class Knows(torch.nn.Linear):
        def forward(self, tokens):
            return 100.0 * answers

    assert mixing_tasks.score(Knows(1, 1), given, 64)["accuracy"] == 100


def test_a_change_of_any_mixer_is_another_training():
    names = [module.__name__ for module in mixing_tasks._code("retention")]
    assert {"everyformer.parts.mixers.retention", "everyformer.parts.mixers.ssd", mixing_tasks.__name__} <= set(names)
    assert "everyformer.papers.sla.layer" in [module.__name__ for module in mixing_tasks._code("sla")]
