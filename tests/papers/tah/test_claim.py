import pytest
import torch

from everyformer.catalog import Job, paper
from everyformer.lab.measure import count_parameters
from everyformer.papers.tah import bench, claim, rings


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield Job("smoke", 0, "cpu", tmp_path_factory.mktemp("job"))
    patch.undo()


def test_walks_follow_the_ring_that_the_text_lists():
    texts = rings.draw(20, torch.Generator().manual_seed(0))
    shift = rings.PLACES + len(rings.SHARES)
    for tokens, labels in zip(texts.tokens.tolist(), texts.labels.tolist(), strict=True):
        ring = dict(divmod(token - shift, rings.PLACES) for token in tokens[: rings.PLACES])
        assert sorted(ring) == sorted(ring.values()) == list(range(rings.PLACES))
        place = tokens[rings.PLACES]
        for question in range(rings.FIRST, len(tokens), 2):
            for _ in range(tokens[question] - rings.PLACES):
                place = ring[place]
            assert tokens[question + 1] == labels[question + 1] == place
        assert all(label == -100 for label in (*labels[: rings.FIRST], *labels[rings.FIRST :: 2]))


def test_right_answers_are_counted_where_they_are_asked():
    texts = rings.draw(4, torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot(texts.tokens.roll(-1, dims=1), rings.VOCABULARY).float()
    assert rings.right(logits, texts).all()
    logits[2, rings.FIRST] = 0
    logits[2, rings.FIRST, -1] = 1
    assert not rings.right(logits, texts)[2, 0] and rings.right(logits, texts).sum() == 39


def test_policies_share_one_start_and_the_same_parameters(job):
    models = rings.trained(job)
    again = rings.trained(job)
    for name, model in vars(models).items():
        for key, tensor in vars(again)[name].state_dict().items():
            assert torch.equal(tensor, model.state_dict()[key]), (name, key)
    counts = {name: count_parameters(model) for name, model in vars(models).items()}
    assert counts["reference"] < counts["tah"] == counts["twice"] <= counts["once"]


def test_at_cpu_scale_too_the_parameters_are_no_more():
    size = rings.SIZES["cpu"]
    once = rings.language_model(size)
    twice = rings.with_passes(rings.training.prune(rings.language_model(size), 1), size)
    assert 0.9 * count_parameters(once) < count_parameters(twice) <= count_parameters(once)


def test_gains_are_differences_of_the_policies_beside_them(job):
    for name, baseline in (("selective", "twice"), ("single", "once")):
        measured = getattr(claim, name)(job)
        extras = measured.extras
        assert measured.method == pytest.approx(extras["texts right (%), TaH"] - extras[f"texts right (%), {baseline}"])
        assert extras["second passes (%), TaH, forced twice"] == 100
        second = measured.series[-1].lines["answers"][1]
        assert second == sorted(second, reverse=True)


def test_overthinking_is_counted_on_the_same_weights(job):
    measured = claim.overthinking(job)
    assert measured.baseline == measured.extras["right to wrong (%), TaH, forced twice"]
    assert 0 <= measured.method <= 100


def test_reading_token_by_token_is_exact_only_with_the_keys_of_every_depth(job, monkeypatch):
    models = rings.trained(job)
    models.tah.threshold = bench.threshold_for(models.tah, claim._tests(job).tokens)
    monkeypatch.setattr(rings, "trained", lambda job: models)
    measured = claim.exact(job)
    assert measured.extras["second passes (%)"] > 0
    assert measured.method < 1e-5 < 1e-3 < measured.baseline


def test_plans_are_of_the_papers_model():
    for card in paper("tah").claims:
        plan = getattr(claim, card.plan)()
        assert 5.8e8 < plan.parameters < 6.1e8  # Qwen3-0.6B
        assert plan.launch.startswith(f"everyformer run tah.{card.name} ")


def test_speed_is_measured_on_the_share_of_the_paper():
    for case in bench.cases(True, "cpu"):
        case.ours()
    model, tokens = bench.wrap(rings.language_model(rings.SIZES["smoke"]), top_tokens=10).eval(), torch.arange(40)[None]
    model.threshold = bench.threshold_for(model, tokens)
    assert 0 < float((model(tokens).depths > 1).float().mean()) < 0.15
