import pytest
import torch

from everyformer.catalog import Job
from everyformer.papers.fcaformer import FcaFormer, claim


@pytest.mark.parametrize("name", ["plain", "hybrid", "cross_tokens"])
def test_smoke_runs_of_the_trained_claims(name, tmp_path):
    found = getattr(claim, name)(Job("smoke", 0, "cpu", tmp_path))
    assert 0 <= found.method <= 100
    assert 0 <= found.baseline <= 100


def test_the_network_without_cross_tokens_has_as_many_parameters():
    sizes = {"img_size": 32, "num_classes": 10}
    method = sum(p.numel() for p in FcaFormer(**claim.HYBRID, **sizes).parameters())
    model = claim.without_cross_tokens(claim.HYBRID, **sizes)
    assert method <= sum(p.numel() for p in model.parameters()) < 1.02 * method
    assert not any("cross" in name or "merge" in name for name, _ in model.named_parameters())


def test_the_count_is_the_tables(tmp_path):
    found = claim.cost(Job("smoke", 0, "cpu", tmp_path))
    assert found.method == pytest.approx(3.57, abs=0.01)
    assert found.baseline == pytest.approx(4.45, abs=0.02)


def test_plans_build_the_published_networks():
    assert claim.plan_plain().parameters == 5_832_952
    assert claim.plan_hybrid().parameters == 16_275_870
    assert torch.tensor(claim.plan_cross_tokens().flops) > 1e13
