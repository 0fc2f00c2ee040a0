import math

import pytest
import torch

from everyformer.catalog import Job
from everyformer.lab.measure import effect_of
from everyformer.papers.ditraj import PAPER, Trajectory, bench, claim, digits


@pytest.mark.parametrize("name", [claim.name for claim in PAPER.claims])
def test_every_claim_runs_and_gives_the_same_again(name, cache, tmp_path):
    run = getattr(claim, PAPER.claim(name).run)
    found = run(Job("smoke", 0, "cpu", tmp_path))
    assert math.isfinite(found.method) and math.isfinite(found.baseline)
    assert len(found.extras) == 3 * len(claim.VARIANTS)
    assert [panel.kind for panel in found.series] == ["bar", "bar", "bar", "heat"]
    again = run(Job("smoke", 0, "cpu", tmp_path))
    assert (again.method, again.extras) == (found.method, found.extras)
    assert run(Job("smoke", 1, "cpu", tmp_path)).extras != found.extras


def test_every_ablation_really_draws_something_else(cache):
    model = digits.trained("smoke")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    (trajectory,), _ = claim.held_out(1, 4, seed=3)
    noise, labels = torch.randn(1, 4, 1, 16, 16), torch.tensor([7])
    drawn = [claim.draw(model, labels, noise, trajectory, variant, 10) for variant in claim.VARIANTS]
    for index, first in enumerate(drawn):
        assert all((first - other).abs().max() > 1e-4 for other in drawn[:index])


def test_a_digit_is_found_where_it_is():
    source = digits.digits("smoke")
    corners = digits.paths(20, 4, torch.Generator().manual_seed(0))
    assert (corners % (2 * digits.PATCH) == 0).all() and corners.min() >= 0 and corners.max() <= 16
    videos = digits.enlarged(digits.rendered(source.images[:20], corners))
    centres, there = claim.locate(videos)
    assert there.all()
    assert (centres - (corners + 8)).norm(dim=-1).mean() < 1.0
    assert claim.overlap(centres, corners + 8).mean() > 0.85
    cut = claim.crops(videos.flatten(0, 1), (corners + 8).flatten(0, 1))
    assert (cut[::4, 0] - (2 * source.images[:20] - 1)).abs().mean() < 0.15  # blurred by half its size and back
    nothing, there = claim.locate(torch.full((2, 1, 32, 32), -1.0))
    assert not there.any() and nothing.tolist() == [[16.0, 16.0]] * 2


def test_overlap_is_intersection_over_union():
    here = torch.tensor([16.0, 16.0])
    others = torch.tensor([[16.0, 16.0], [24.0, 16.0], [16.0, 32.0], [20.0, 20.0]])
    assert claim.overlap(here, others).tolist() == pytest.approx([1.0, 1 / 3, 0.0, 144 / 368])


def test_trajectories_are_held_out_ones_and_lie_on_whole_tokens():
    trajectories, centres = claim.held_out(3, 6, seed=0)
    assert all(isinstance(trajectory, Trajectory) for trajectory in trajectories)
    boxes = torch.stack([trajectory.tokens((6, 8, 8)) for trajectory in trajectories])
    assert (boxes[..., 1] - boxes[..., 0] == 4).all() and (boxes[..., 3] - boxes[..., 2] == 4).all()
    torch.testing.assert_close(centres, torch.stack([boxes[..., 2] + 2, boxes[..., 0] + 2], -1) * 4.0)
    assert (centres[:, 0] != centres[:, -1]).any()
    other, _ = claim.held_out(3, 6, seed=1)
    assert other != trajectories


def test_batches_hold_captioned_and_empty_videos():
    size = digits.Size(frames=4, dim=24, depth=1, heads=1, batch=40, steps=1, rate=1e-3)
    video, words, noise, levels = digits.drawn(digits.digits("smoke"), size, torch.Generator().manual_seed(0))
    assert video.shape == noise.shape == (40, 4, 1, 16, 16) and words.shape == (40, 2)
    blank = video.amax((1, 2, 3, 4)) == -1
    assert 0 < blank.sum() < 20
    silent = (words == digits.ANYTHING).all(1)
    assert 0 < silent.sum() < 20
    assert (words[blank & ~silent] == torch.tensor(digits.BACKGROUND)).all()
    assert (words[~blank & ~silent][:, 0] == digits.DIGIT).all() and words[~blank & ~silent][:, 1].max() < 10
    assert levels.min() >= 0 and levels.max() <= 1 and levels.mean() > 0.55  # shifted towards noise


def test_the_verdicts_go_the_right_way():
    quality = PAPER.claim("quality")
    assert effect_of([4.0], [0.0], quality.better, quality.threshold).mean == pytest.approx(6.0)
    distance = PAPER.claim("distance")
    assert effect_of([2.0], [8.0], distance.better, distance.threshold).mean == pytest.approx(0.75)


def test_plans_name_the_size_of_wan():
    plan = claim.plan_control()
    assert plan.parameters == 1_418_996_800
    assert plan.flops > 1e14 and "ditraj.control" in plan.launch
    assert "ditraj.distance" in claim.plan_distance().launch and "ditraj.quality" in claim.plan_quality().launch


def test_bench_cases_run():
    cases = list(bench.cases(quick=True, device="cpu"))
    assert len(cases) == 6
    for case in cases:
        (peer,) = case.peers.values()
        assert case.ours().shape == peer().shape
