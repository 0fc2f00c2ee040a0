import math

import pytest
import torch

from everyformer.catalog import Job
from everyformer.papers.qsched import PAPER, claim, quality


@pytest.mark.parametrize("name", [claim.name for claim in PAPER.claims])
def test_every_claim_runs_and_gives_the_same_again(name, cache, tmp_path):
    run = getattr(claim, PAPER.claim(name).run)
    found = run(Job("smoke", 0, "cpu", tmp_path))
    assert math.isfinite(found.method) and math.isfinite(found.baseline)
    assert found.extras["calibration score"] >= found.extras["score of all ones"]
    assert len(found.series) == 4
    assert (tmp_path / "calibration.journal").is_file()
    again = run(Job("smoke", 0, "cpu", tmp_path))
    assert (again.method, again.extras) == (found.method, found.extras)


def test_gains_are_relative_to_full_precision():
    study = quality.Study({"full precision": 4.0, "quantised": 5.0, "Q-Sched": 3.0}, {}, None, {})
    assert study.gain("Q-Sched") == pytest.approx(25.0)
    assert study.gain("quantised") == pytest.approx(-25.0)


def test_naturalness_falls_with_contrast_and_noise():
    natural = torch.rand(200, 1, 16, 16).round()
    score = quality.naturalness(natural)
    own = score(natural, [])
    assert own == pytest.approx(0.0, abs=1e-9)
    assert score(0.5 * natural, []) < score(0.8 * natural, []) < own
    assert score(natural + 0.3 * torch.randn_like(natural), []) < own


def test_agreement_is_the_probability_of_the_prompt():
    class Certain(torch.nn.Module):
        def forward(self, images):
            return 100.0 * torch.nn.functional.one_hot(torch.tensor([1, 2, 1, 3]), 10)

    scores = quality.agreement(Certain())(torch.zeros(4, 1, 16, 16), [1, 2])
    assert scores.tolist() == pytest.approx([1, 1, 1, 0])


def test_plans_name_the_size_of_stable_diffusion():
    plan = claim.plan_lcm()
    assert plan.parameters == 859_520_964
    assert claim.plan_pcm().flops == 2 * plan.flops
