import dataclasses

import pytest
import torch

from everyformer.catalog import Job
from everyformer.papers.vdt import bench, claim, study
from everyformer.papers.vdt.rivals import SimVP


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vdt")


@pytest.fixture(autouse=True)
def _cache(folder, monkeypatch):
    monkeypatch.setattr("everyformer.lab.data.cache", lambda: folder)


def job(folder, seed=0):
    return Job("smoke", seed, "cpu", folder)


@pytest.mark.parametrize("name", ["ucf101", "cityscapes", "prediction", "interpolation", "temporal", "unified"])
def test_smoke_runs_give_figures(name, folder):
    found = getattr(claim, name)(job(folder))
    assert all(torch.tensor(list(found.extras.values())).isfinite())
    assert found.baseline == 0 if name == "unified" else min(found.method, found.baseline) > 0
    assert found.series[-1].kind == "heat"


def test_models_are_trained_once_and_by_seed(folder, monkeypatch):
    first = study.vdt(job(folder), "unified").final.weight
    other = study.vdt(job(folder, seed=1), "unified").final.weight
    assert first.any()
    assert not torch.equal(first, other)
    monkeypatch.setattr(study, "_fit", None)  # no training any more
    assert torch.equal(study.vdt(job(folder), "unified").final.weight, first)


def test_a_rival_gets_as_many_steps_as_fit_the_time_and_a_resumed_one_keeps_them(folder, tmp_path):
    size = study.SIZES["smoke"]
    rival = SimVP(4, 4)
    steps = study._steps_of_equal_time(job(folder), size, rival, tmp_path / "steps")
    assert steps >= 1
    (tmp_path / "steps").write_text("1234")
    assert study._steps_of_equal_time(job(folder), size, rival, tmp_path / "steps") == 1234
    longer = dataclasses.replace(size, steps=1000 * size.steps)
    assert study._steps_of_equal_time(job(folder), longer, rival, tmp_path / "more") > 10 * steps


def test_videos_to_test_on_are_of_digits_not_trained_on(folder):
    shown, held = study._source("smoke"), study.digits("smoke", "test")
    assert len(shown.images) == 4 * len(held.images)
    assert torch.equal(study.unseen(job(folder)), study.unseen(job(folder)))


def test_simple_fillings_between_given_frames():
    truth = torch.arange(9.0).view(1, 9, 1, 1, 1).expand(2, -1, 1, 32, 32)
    frames, made = claim._between(truth, torch.tensor([False, True, True, True, False, True, True, True, False]))
    assert frames == [1, 2, 3, 5, 6, 7]
    assert torch.equal(made["linear blend"], truth)  # what moves evenly is blended exactly
    assert made["copy"][0, :, 0, 0, 0].tolist() == [0, 0, 0, 4, 4, 4, 4, 8, 8]


def test_joint_attention_sees_all_tokens():
    joint = bench.Joint(study.network(study.SIZES["smoke"], "without temporal attention"))
    for parameter in joint.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    video = torch.randn(1, 8, 4, 8, 8, requires_grad=True)
    (seen,) = torch.autograd.grad(joint(video, torch.ones(1))[:, 0].square().sum(), video)
    assert seen.flatten(2).any(2).all()


def test_the_plan_is_the_published_size():
    plan = claim.plan()
    assert plan.parameters == pytest.approx(860.0e6, rel=1e-2)
    assert plan.flops > 1e15
