import math

import pytest
import torch

from everyformer.catalog import Job
from everyformer.lab.bench import run_cases
from everyformer.papers.ras import PAPER, Schedule, bench, claim, digits, quality


@pytest.mark.parametrize("name", [claim.name for claim in PAPER.claims])
def test_every_claim_runs_and_has_finite_figures(name, cache, tmp_path):
    found = getattr(claim, PAPER.claim(name).run)(Job("smoke", 0, "cpu", tmp_path))
    assert all(math.isfinite(figure) for figure in (found.method, found.baseline, *found.extras.values()))
    assert found.method > 0 and found.baseline > 0
    assert found.series
    plan = getattr(claim, PAPER.claim(name).plan)()
    sizes = {"sd3": 2.03e9, "lumina": 2.34e9, "tokens": 6.7e8, "quality": 3.2e7}
    assert plan.parameters == pytest.approx(sizes[name], rel=0.02)
    assert plan.flops > 1e12 and plan.memory_bytes > 1e9
    assert plan.launch == f"everyformer run ras.{name} --scale paper --device cuda"


def test_the_speed_claim_is_the_worse_of_two_ratios(tmp_path):
    found = claim.tokens(Job("smoke", 0, "cpu", tmp_path))
    extras = found.extras
    for ratio in claim.RATIOS:
        bound = 8 / (4 + 4 * ratio)
        assert extras[f"token bound, ratio {ratio}"] == pytest.approx(bound)
        up = extras["seconds, dense"] / extras[f"seconds, ratio {ratio}"]
        assert extras[f"share of the bound, ratio {ratio}"] == pytest.approx(up / bound)
    assert found.method == min(extras[f"share of the bound, ratio {ratio}"] for ratio in claim.RATIOS)


def test_schedules_are_those_of_the_card():
    for schedule, steps in ((claim.SD3_SCHEDULE, claim.SD3_STEPS), (claim.LUMINA_SCHEDULE, claim.LUMINA_STEPS)):
        shares = schedule.shares(steps)
        assert shares.count(1.0) == 6 and shares.count(0.125) == steps - 6
        assert schedule.bound(steps) > 3


@pytest.mark.parametrize(
    ("seconds", "dense", "steps"), [(0.41, 1.0, 5), (0.4, 1.0, 4), (0.0, 1.0, 1), (3.0, 1.0, quality.STEPS)]
)
def test_the_baseline_gets_at_least_as_much_time(seconds, dense, steps):
    assert quality.dense_steps_of(seconds, dense) == steps


def test_the_study_compares_by_the_same_noise_and_shows_what_ran(cache, tmp_path):
    found = quality.run(Job("smoke", 0, "cpu", tmp_path))
    again = quality.run(Job("smoke", 0, "cpu", tmp_path))
    assert again.method == found.method
    assert found.method == found.extras[f"Fréchet distance, {quality.RAS}"]
    assert found.baseline == found.extras[f"Fréchet distance, {quality.EQUAL}"]
    assert found.method != quality.run(Job("smoke", 1, "cpu", tmp_path)).method
    maps = torch.tensor(found.series[2].grid)
    assert maps.shape == (16, quality.STEPS * 17 - 1)
    ran = [int((maps[:, 17 * step : 17 * step + 16] == 1).sum()) for step in range(quality.STEPS)]
    settings = quality.SETTINGS
    shares = Schedule(settings["sample_ratio"], settings["dense_steps"], settings["reset_steps"]).shares(quality.STEPS)
    assert ran == [256 * share for share in shares]


def test_digits_are_padded_split_and_centred():
    (images, labels), (held_out, others) = digits.digits("smoke")
    assert images.shape == (400, 1, 32, 32) and held_out.shape == (100, 1, 32, 32)
    assert (len(labels), len(others)) == (400, 100)
    assert images.min() == -1 and images.max() == 1 and (images[:, :, 0] == -1).all()


def test_benchmark_cases_run():
    rows = run_cases(bench.cases(True, "cpu"), 1, "cpu")
    assert [row.target for row in rows] == pytest.approx([0.85 * 8 / 6, 0.85 * 8 / 5])
    assert all(row.ratios["dense"] > 0 for row in rows)
