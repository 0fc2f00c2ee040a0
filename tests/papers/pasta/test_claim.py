import dataclasses

import pytest
import torch

from everyformer import catalog
from everyformer.catalog import Job
from everyformer.papers.pasta import bench, claim, study

CLAIMS = [one.name for one in catalog.paper("pasta").claims]


@pytest.fixture(scope="module", autouse=True)
def folder(cache):
    for kept in (study.robot, study.references):
        kept.cache_clear()
    yield cache
    for kept in (study.robot, study.references):
        kept.cache_clear()


def job(folder, seed=0):
    return Job("smoke", seed, "cpu", folder)


@pytest.mark.parametrize("name", CLAIMS)
def test_smoke_runs_give_figures(name, folder):
    found = getattr(claim, name)(job(folder))
    figures = torch.tensor([found.method, found.baseline, *found.extras.values()])
    assert figures.isfinite().all()
    assert found.series
    if name == "sensors":
        assert found.method > 0
    if name == "peft":
        assert found.extras["trained parameters beside the head, ia3"] == 6 * 16
        assert found.extras["trained parameters beside the head, frozen"] == 0


def test_models_are_trained_once_and_by_seed(folder, monkeypatch):
    first = study.pretrained(job(folder), "c-bert")
    other = study.pretrained(job(folder, seed=1), "c-bert")
    assert not torch.equal(first.mask, other.mask)
    assert not torch.equal(first.mask, study.untrained(job(folder), "c-bert").mask)
    monkeypatch.setattr(study.train, "fit_drawn", None)  # no training any more
    assert torch.equal(study.pretrained(job(folder), "c-bert").mask, first.mask)


def test_what_is_held_back_is_not_trained_on(folder):
    known = study.robot("smoke")
    shown, held = ({float(one.actions.sum()) for one in part} for part in (known.shown, known.held))
    assert len(shown) + len(held) == 12
    assert not shown & held


def test_heads_side_by_side_learn_as_each_would_alone(folder):
    job_ = job(folder)
    encode = study.encoder(job_, "raw")
    both = study.cloned(job_, encode, [(3,), (5,)])
    torch.manual_seed(0)
    seen = torch.randn(4, 17)
    acted = both.act(seen).view(2, 2, 6)
    torch.manual_seed(job_.seed)
    assert not torch.allclose(acted[0], acted[1])
    changed = seen.clone()
    changed[:2, 3] += 1.0  # what the first head does not see
    assert torch.equal(both.act(changed), both.act(seen))
    changed[2:, 3] += 1.0
    assert not torch.equal(both.act(changed)[2:], both.act(seen)[2:])


def test_heads_compute_what_a_network_of_linear_layers_does():
    heads = study.Heads(2, 5, 7, 3)
    x = torch.randn(2, 4, 5)
    for head in range(2):
        out = x[head]
        for layer, (weight, bias) in enumerate(zip(heads.weights, heads.biases, strict=True)):
            out = (out if layer == 0 else out.relu()) @ weight[head] + bias[head]
        torch.testing.assert_close(heads(x)[head], out.tanh())


def test_random_actions_score_nothing_and_experts_one(folder):
    low, high = study.references("smoke")
    assert low != high
    experts = study.robot("smoke").experts
    assert float(experts.returns().mean()) == pytest.approx(high)


def test_a_linear_sensor_is_told_by_linear_regression():
    from gymnasium.spaces import Box

    from everyformer.papers.pasta.objectives import Windows
    from everyformer.papers.pasta.tokenizer import ComponentTokenizer

    seen = torch.randn(300, 3, 4)
    seen[..., 2] = seen[..., 0] - 2 * seen[..., 1]
    windows = Windows(seen, torch.randn(300, 3, 1))
    tokenizer = ComponentTokenizer(Box(-9, 9, (4,)), Box(-1, 1, (1,)))
    told = claim._linear(windows, windows, 2, tokenizer)
    assert (told - seen[:, -1, 2]).square().mean() < 1e-3 * seen[:, -1, 2].var()
    noise = claim._linear(windows, windows, 3, tokenizer)
    assert (noise - seen[:, -1, 3]).square().mean() > 0.5


def test_the_plan_is_the_published_size():
    plan = claim.plan()
    assert 4.5e6 < plan.parameters < 7e6
    assert plan.flops > 1e11


def test_peers_are_of_the_same_size():
    from everyformer.lab.measure import count_parameters

    ours = bench.agent()
    assert count_parameters(bench.gpt2(ours)) == pytest.approx(count_parameters(ours), rel=0.05)


def test_cases_run():
    for case in bench.cases(quick=True, device="cpu"):
        case.ours()
        for peer in case.peers.values():
            peer()


def test_a_longer_training_has_as_many_domains_at_paper_scale():
    assert len({one.env for one in study.SIZES["paper"].domains}) == 3
    assert dataclasses.asdict(study.SIZES["paper"].model)["layers"] == 6
