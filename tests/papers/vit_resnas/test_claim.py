import pytest
import torch

from everyformer.catalog import Job
from everyformer.papers.vit_resnas import claim


@pytest.mark.parametrize("name", ["evolution", "residual", "medium"])
def test_smoke_runs_of_the_trained_claims(name, tmp_path):
    found = getattr(claim, name)(Job("smoke", 0, "cpu", tmp_path))
    assert 0 <= found.method <= 100
    assert 0 <= found.baseline <= 100


def test_a_search_of_a_claim_goes_on_from_its_folder(tmp_path, monkeypatch):
    job = Job("smoke", 0, "cpu", tmp_path)
    first = claim.tiny(job)
    # Nothing is evaluated again.
    monkeypatch.setattr(claim, "held_out_accuracy", lambda *_: pytest.fail("evaluated"))
    assert claim.tiny(job) == first


def test_one_pass_has_the_gradients_of_separate_passes(tmp_path):
    found = claim.one_pass(Job("smoke", 0, "cpu", tmp_path))
    assert found.extras["largest difference of gradients, relative"] < 1e-4


def test_the_counts_are_the_tables(tmp_path):
    found = claim.cost(Job("smoke", 0, "cpu", tmp_path))
    assert found.method == pytest.approx(2.8455, abs=1e-4)
    assert found.baseline == pytest.approx(17.56, abs=0.01)
    assert found.extras["multiply-adds, vit_resnas_tiny"] == found.extras["multiply-adds as measured, vit_resnas_tiny"]


def test_the_warm_up_is_part_of_the_state():
    supernet = claim.SuperNet(claim.SMALL_SPACE, examples=2, warm_up=2)
    model = claim.WarmedUp(supernet, per_epoch=2).train()
    for epoch in (0, 0, 1, 1):
        model(torch.randn(2, 3, 32, 32))
        assert int(supernet.epoch) == epoch
    assert int(model.state_dict()["steps"]) == 4


def test_kendalls_tau():
    assert claim.kendall([1, 2, 3], [4, 5, 6]) == 1
    assert claim.kendall([1, 2, 3], [6, 5, 4]) == -1
    assert claim.kendall([1, 2, 3], [5, 5, 6]) == pytest.approx(2 / 3)


def test_plans_build_the_published_networks():
    assert claim.plan_tiny().parameters == 40_793_552
    plan = claim.plan_search()
    assert plan.parameters == 84_814_464
    assert plan.flops > 1e13 and plan.memory_bytes > 1e10
