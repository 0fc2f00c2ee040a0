import pytest
from timm.utils import reparameterize_model

from everyformer.catalog import Job
from everyformer.lab import images
from everyformer.papers.fmvit import FMViT, bench, claim


@pytest.mark.parametrize("name", ["tensorrt", "coreml", "plain", "frequencies"])
def test_smoke_runs_of_the_trained_claims(name, tmp_path):
    found = getattr(claim, name)(Job("smoke", 0, "cpu", tmp_path))
    assert 0 <= found.method <= 100
    assert 0 <= found.baseline <= 100
    costs = [value for key, value in found.extras.items() if key.startswith("multiply-adds")]
    if name == "frequencies":
        assert max(costs) < 1.03 * min(costs)
        assert found.baseline == max(found.extras["accuracy, low alone"], found.extras["accuracy, high alone"])


def test_folding_keeps_the_outputs_and_saves_computation(tmp_path):
    found = claim.folding(Job("smoke", 0, "cpu", tmp_path))
    assert found.extras["largest difference of the outputs"] <= 1e-5
    for what in ("multiply-adds", "parameters", "convolutions and norms"):
        assert found.extras[f"{what}, folded"] < found.extras[f"{what}, with branches"]
    assert found.method > 0
    assert found.baseline > 0


def test_outputs_that_folding_would_change_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "TOLERANCE", 0.0)
    with pytest.raises(ArithmeticError, match="folding changed the outputs by"):
        claim.folding(Job("smoke", 0, "cpu", tmp_path))


def test_a_networks_own_latency_is_about_its_own():
    model = FMViT(**claim.SMALL)
    assert 0.3 < claim.relative_latency(model, "cpu")(model) < 3


def test_mobileone_folds_and_grows_with_its_width():
    costs = [images.macs(reparameterize_model(claim.mobileone(width)), 32) for width in (1, 2, 4)]
    assert costs == sorted(costs)
    assert images.macs(claim.mobileone(2), 32) > costs[1]


def test_plans_build_the_variants_with_their_branches():
    for name in ("tensorrt", "coreml", "plain", "frequencies", "folding"):
        plan = getattr(claim, f"plan_{name}")()
        assert plan.flops > 1e12
        assert f"fmvit.{name}" in plan.launch


def test_quick_benches_run():
    for case in bench.cases(True, "cpu"):
        case.ours()
        for peer in case.peers.values():
            peer()
