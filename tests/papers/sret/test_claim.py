import math

import pytest

from everyformer.catalog import Job
from everyformer.lab.bench import Case
from everyformer.lab.measure import count_parameters
from everyformer.papers.sret import PAPER, bench, claim
from everyformer.papers.sret.model import SReT


@pytest.mark.parametrize("name", [c.run for c in PAPER.claims])
def test_claims_run_at_smoke_scale(name, tmp_path):
    measured = getattr(claim, name)(Job("smoke", 0, "cpu", tmp_path))
    assert math.isfinite(measured.method) and math.isfinite(measured.baseline)
    assert all(math.isfinite(value) for value in measured.extras.values())
    assert measured.series


def test_the_wider_network_has_as_many_parameters():
    recursive = {**claim.SMALL, "groups": None}
    target = count_parameters(SReT(**recursive))
    for options in ({"depths": claim.SMALL["blocks"]}, {}):
        wider = claim.widened({**recursive, **options, "projection": False}, target)
        assert count_parameters(SReT(**wider)) == pytest.approx(target, rel=0.01)


def test_the_deep_network_has_a_hundred_applications_of_ten_blocks():
    assert sum(claim.DEEP["depths"]) == 100 and sum(claim.DEEP["blocks"]) == 10


def test_plans_name_parameters_and_launch():
    plan = claim.plan_tiny()
    assert plan.parameters == 4_755_979
    assert plan.launch == "everyformer run sret.tiny --scale paper --device cuda"
    assert 3 * 2 * 1.1e9 * 1024 * 0.95 < plan.flops < 3 * 2 * 1.2e9 * 1024


def test_the_quick_bench_has_its_peers():
    (case,) = bench.cases(True, "cpu")
    assert isinstance(case, Case)
    assert set(case.peers) == {"sret_t_unsliced", "deit_tiny_patch16_224", "pit_ti_224"}
    assert case.ours().shape == (4, 1000)
