import dataclasses

import pytest
import torch

from everyformer.catalog import Job
from everyformer.lab import scenes
from everyformer.papers.feedforward_3d import alignment, answers, claim, geometry, training
from everyformer.papers.feedforward_3d.heads import Pointmap

pytestmark = pytest.mark.usefixtures("cache")


def job(folder, seed=0):
    return Job("smoke", seed, "cpu", folder)


@pytest.mark.parametrize("name", ["few_views", "pointmap", "confidence", "views", "one_pass", "families"])
def test_smoke_runs_give_figures(name, tmp_path):
    found = getattr(claim, name)(job(tmp_path))
    assert all(torch.tensor([found.method, found.baseline, *found.extras.values()]).isfinite())
    assert found.series
    for panel in found.series:
        if panel.kind == "heat":
            assert 4 * claim.TILE**2 < sum(map(len, panel.grid)) <= 5 * 2 * claim.TILE**2


def test_models_are_trained_once_by_seed_and_for_the_same_time(tmp_path, monkeypatch):
    first, (many, steps) = training.pair_model(job(tmp_path)), training.multi_model(job(tmp_path))
    other = training.pair_model(job(tmp_path, seed=1))
    assert steps >= 1
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
    monkeypatch.setattr(training, "_fit", None)  # no training any more
    assert torch.equal(next(training.pair_model(job(tmp_path)).parameters()), next(first.parameters()))
    again, counted = training.multi_model(job(tmp_path))
    assert counted == steps
    assert torch.equal(next(again.parameters()), next(many.parameters()))


def test_what_is_drawn_to_train_on_agrees_with_itself():
    images, depth, points, extrinsics, intrinsics = training._drawn("smoke", 3, 4, torch.Generator().manual_seed(0))
    assert images.shape == (3, 4, 3, 32, 32)
    assert 0 <= images.min() < images.max() <= 1
    pixels, seen = geometry.project(points, intrinsics, extrinsics)
    assert torch.allclose(pixels, geometry.pixel_grid(32, 32, pixels).expand_as(pixels), atol=1e-3)
    assert torch.allclose(seen, depth, atol=1e-3)
    assert torch.allclose(extrinsics[:, 0], torch.eye(3, 4).expand(3, -1, -1), atol=1e-5)


def test_scenes_to_test_on_were_not_trained_on(tmp_path):
    shown = training._rendered("smoke")["extrinsics"].flatten(0, 1)
    held = [training.unseen(job(tmp_path), 2, 3, textured=textured) for textured in (False, True)]
    held.append(training.tuning(job(tmp_path), textured=False))
    for views in held:
        gap = (views.extrinsics.flatten(0, 1)[:, None] - shown).abs().amax((-2, -1))
        assert gap.min() > 1e-4
    assert torch.equal(held[0].images, training.unseen(job(tmp_path), 2, 3, textured=False).images)


class Right(torch.nn.Module):
    """A pair model that knows the truth of one scene, seen from its image tokens: the number of the view."""

    def __init__(self, views):
        super().__init__()
        self.views = views

    def grid(self, images):
        return 4, 4

    def encode(self, images):
        return (images[:, None] - self.views.images[0][None]).flatten(2).abs().sum(-1).argmin(1)

    def decode(self, first, second, grid, other):
        pose = self.views.extrinsics[0, first]
        return tuple(
            pointmap_of(self.views.points[0, view].flatten(1, 2) @ pose[:, :, :3].mT + pose[:, None, :, 3])
            for view in (first, second)
        )

    def forward(self, image1, image2):
        return self.decode(self.encode(image1), self.encode(image2), (4, 4), (4, 4))


def pointmap_of(points):
    points = points.unflatten(1, (32, 32))
    return Pointmap(points, torch.full(points.shape[:-1], 10.0))


def test_a_model_that_is_right_scores_full_marks(tmp_path):
    scene = training.unseen(job(tmp_path), 4, 1, textured=False)
    net = Right(scene)
    truth = answers.to_first(scene.extrinsics)
    two = answers.by_pair(net, scene.images[:, :2])
    assert geometry.pose_auc(two.extrinsics[:, 1], truth[:, 1], 2.0) > 0.7
    assert claim._errors(two.points, answers.in_first(scene.points, scene.extrinsics)[:, :2]).max() < 1e-3
    four = answers.by_alignment(net, scene.images, steps=0)
    assert geometry.pose_auc(geometry.all_pairs(four.extrinsics), geometry.all_pairs(truth), 5.0) > 0.7
    assert claim._fitted(four.points, scene) < 0.01


def test_a_pose_that_no_camera_fits_is_missing_and_not_an_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("none")

    monkeypatch.setattr(answers, "camera_of", refuse)
    scene = training.unseen(job(tmp_path), 2, 2, textured=False)
    found = answers.by_pair(training.pair_model(job(tmp_path)), scene.images)
    assert found.extrinsics[:, 1].isnan().all()
    assert geometry.pose_auc(found.extrinsics[:, 1], answers.to_first(scene.extrinsics)[:, 1]) == 0


def test_focal_lengths_of_nonsense_are_kept_in_bounds():
    focal = alignment.focal_of(torch.randn(3, 8, 8, 3))
    assert (focal >= 0.28 * 8).all()
    assert (focal <= 80).all()


def test_rank_correlation():
    x = torch.rand(2, 50)
    assert torch.allclose(claim._spearman(x, x.exp()), torch.ones(2))
    assert torch.allclose(claim._spearman(x, -x), -torch.ones(2))
    assert claim._spearman(x, torch.rand(2, 50)).abs().max() < 0.5


def test_one_pose_for_all_is_a_rotation_near_the_middle():
    extrinsics, _ = scenes.draw_cameras(50, 2, torch.Generator().manual_seed(0))
    truth = answers.to_first(extrinsics)[:, 1]
    usual = claim._usual(truth)
    geometry.check_rotation(usual[..., :3])
    assert geometry.pose_errors(usual, truth)[0].median() < 35


def test_the_plan_is_the_published_size():
    plan = claim.plan()
    assert plan.parameters == pytest.approx(530e6, rel=0.03)
    assert plan.flops > 1e13


def test_sizes_are_whole():
    for size in training.SIZES.values():
        assert size.side % 8 == 0
        assert dataclasses.asdict(size)["batch"] >= training.VIEWS
