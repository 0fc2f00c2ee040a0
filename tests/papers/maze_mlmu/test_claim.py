import math

import pytest
import torch

from everyformer.catalog import Job
from everyformer.lab.measure import count_parameters
from everyformer.papers.maze_mlmu import PAPER, bench, claim, shortest_path, study


@pytest.mark.parametrize("name", [claim.name for claim in PAPER.claims])
def test_every_claim_runs_and_gives_the_same_again(name, cache, tmp_path):
    run = getattr(claim, PAPER.claim(name).run)
    found = run(Job("smoke", 0, "cpu", tmp_path))
    assert math.isfinite(found.method) and math.isfinite(found.baseline) and found.series
    if name == "time":  # seconds differ, steps do not
        found.extras = {key: value for key, value in found.extras.items() if "seconds" not in key}
    again = run(Job("smoke", 0, "cpu", tmp_path))
    assert found.extras == {key: again.extras[key] for key in found.extras}


def test_both_objectives_get_models_of_one_size_and_the_same_mazes(cache, tmp_path):
    shape = study.SIZES["cpu"]
    mazes = study.task("smoke", 3, 0)
    counts = [count_parameters(study.Student(objective, shape, mazes.names, 30)) for objective in study.OBJECTIVES]
    assert counts[0] == pytest.approx(counts[1], rel=0.02)
    again, other = study.task("smoke", 3, 0), study.task("smoke", 3, 1)
    assert torch.equal(mazes.train_prompts, again.train_prompts) and mazes.answers == again.answers
    assert not torch.equal(mazes.train_prompts, other.train_prompts)
    asked = {tuple(row) for row in mazes.train_prompts.tolist()}
    assert not asked & {tuple(row) for row in mazes.test_prompts.tolist()}


def test_a_student_keeps_how_it_did_on_the_way(cache, tmp_path, monkeypatch):
    marks = iter([10.0, 20.0, 30.0])
    with monkeypatch.context() as patch:
        patch.setattr(study, "exact", lambda found, task: next(marks))
        student = study.trained(Job("smoke", 7, "cpu", tmp_path), "MLM-U", study.task("smoke", 3, 7))
    assert student.curve.tolist() == [10.0, 20.0, 30.0] and int(student.done) == study.SIZES["smoke"].steps
    kept = study.trained(Job("smoke", 7, "cpu", tmp_path), "MLM-U", study.task("smoke", 3, 7))
    assert kept.curve.tolist() == [10.0, 20.0, 30.0]  # not trained again


def test_scores_are_of_the_shortest_and_of_any_path():
    mazes = study.task("smoke", 3, 0)
    answers = [shortest_path(maze) for maze in mazes.test]
    assert study.exact(answers, mazes) == study.valid(answers, mazes) == 100
    detour = [[path[0], path[1], *path] for path in answers]
    assert study.exact(detour, mazes) == 0 and study.valid(detour, mazes) == 100
    assert study.exact([[]] * 20, mazes) == study.valid([path[1:] for path in answers], mazes) == 0


def test_where_a_level_is_reached_lies_between_points():
    assert claim.reached([8.0, 9.0, 10.0], [50.0, 80.0, 100.0]) == pytest.approx(9.5)
    assert claim.reached([8.0, 9.0], [95.0, 99.0]) == 8.0
    assert claim.reached([8.0, 9.0], [50.0, 89.0]) is None
    assert claim.cost({"MLM-U": 100.0, "next-token": None}, 800.0) == {"MLM-U": 100.0, "next-token": 800.0}
    assert claim.cost({"MLM-U": None, "next-token": None}, 800.0) == {"MLM-U": 1600.0, "next-token": 800.0}


def test_plans_build_the_papers_model():
    plan = claim.plan_accuracy()
    assert 7.9e6 < plan.parameters < 8.1e6 and plan.flops > 1e12
    assert {p().launch for p in (claim.plan_samples, claim.plan_time, claim.plan_size)} == {
        f"everyformer run maze_mlmu.{name} --scale paper --device cuda --precision bf16-mixed"
        for name in ("samples", "time", "size")
    }


def test_bench_cases_run():
    for case in bench.cases(True, "cpu"):
        case.ours()
        for peer in case.peers.values():
            peer()
