import math

import pytest
import torch

import everyformer
from everyformer.catalog import Job
from everyformer.lab.measure import count_parameters
from everyformer.ops.dwt import haar2d
from everyformer.papers.wavemix import bench, claim

CARD = everyformer.paper("wavemix")


@pytest.mark.parametrize("name", [c.name for c in CARD.claims])
def test_each_claim_runs_at_smoke_scale(name, tmp_path):
    found = getattr(claim, CARD.claim(name).run)(Job("smoke", 0, "cpu", tmp_path))
    assert all(math.isfinite(value) for value in (found.method, found.baseline, *found.extras.values()))
    assert found.series


@pytest.mark.parametrize("name", [c.name for c in CARD.claims])
def test_each_plan_counts_the_papers_network(name):
    plan = getattr(claim, CARD.claim(name).plan)()
    assert plan.parameters in (27_857_608, 3_042_550, 3_566)
    assert plan.flops > 0
    assert plan.memory_bytes > 0


def test_networks_that_are_compared_have_about_as_many_parameters():
    target = count_parameters(claim.WaveMix(10, **claim.LITE))
    for model in (claim.vit(target, 2), claim.vit(target, 4), claim.resnet(target)):
        assert abs(count_parameters(model) / target - 1) < 0.15
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_attention_without_fusion_is_the_same():
    fused, plain = claim.vit(20_000, 4).eval(), claim.vit(20_000, 4, fused=False).eval()
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(plain(x), fused(x), atol=1e-5, rtol=1e-4)


def test_the_benchmarks_convolution_is_the_transform():
    x = torch.randn(1, 2, 8, 8)
    low, highs = bench.grouped(x, 2)
    right, expected = haar2d(x, 2)
    torch.testing.assert_close(low, right)
    for mine, its in zip(highs, expected, strict=True):
        torch.testing.assert_close(mine, its)
