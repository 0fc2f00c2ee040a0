import dataclasses

import pytest
import torch

from everyformer.catalog import Job, paper
from everyformer.papers.icl_gd import InContextTransformer, claim
from everyformer.papers.icl_gd.data import Tasks, sine_tasks


def job(folder):
    return Job("smoke", 0, "cpu", folder)


def test_a_second_training_in_the_same_folder_ends_with_the_same_weights(tmp_path):
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = InContextTransformer(11)
        recipe = dataclasses.replace(claim.Recipe(), steps=6, batch=8, snapshots=3)
        kept = claim.learn(job(tmp_path), "one", model, claim.linear, recipe)
        runs.append([snapshot.layer().query.clone() for snapshot in kept.values()])
        assert list(kept) == [0.0, 2.0, 4.0, 6.0]
    for first, second in zip(*runs, strict=True):
        assert (first == second).all()
    assert not (runs[0][0] == runs[0][-1]).all()


def test_measuring_tasks_are_the_same_each_time_and_others_for_another_seed(tmp_path):
    first, again = (claim.unseen(job(tmp_path), claim.linear) for _ in range(2))
    other = claim.unseen(dataclasses.replace(job(tmp_path), seed=1), claim.linear)
    assert (first.tokens == again.tokens).all() and not (first.tokens == other.tokens).all()


def test_the_linear_learner_solves_lines_and_is_no_worse_than_zero_on_waves():
    x = torch.randn(50, 11, 1)
    y = torch.randn(50, 1, 1) * x + torch.randn(50, 1, 1)
    shown = y.clone()
    shown[:, -1] = 0
    assert claim.linear_learner(Tasks(torch.cat([x, shown], dim=-1), y[:, -1])) < 1e-8
    waves = sine_tasks(500, generator=torch.Generator().manual_seed(0))
    assert claim.linear_learner(waves) <= 1.001 * 0.5 * waves.target.square().mean()


def test_least_squares_recovers_tasks_without_noise():
    assert claim.least_squares(claim.linear(100, torch.Generator().manual_seed(0))) < 1e-4


def test_float64_layers_keep_ten_digits():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        _, share, errors = claim.construction_errors(generator, 6)
        assert share >= 1 or errors["layer, float64"] < 1e-10


@pytest.mark.parametrize("name", [c.name for c in paper("icl_gd").claims])
def test_every_claim_has_a_plan_of_the_papers_size(name):
    plan = getattr(claim, paper("icl_gd").claim(name).plan)()
    assert plan.parameters > 0 and plan.flops > 0 and plan.memory_bytes > 0
