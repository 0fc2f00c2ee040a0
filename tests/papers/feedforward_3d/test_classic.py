import dataclasses

import pytest
import torch

from everyformer.lab import scenes
from everyformer.papers.feedforward_3d import classic, geometry

SETTINGS = classic.Settings(enlarge=1)


@pytest.fixture(scope="module")
def views():
    return scenes.views(3, 4, torch.Generator().manual_seed(1), textured=True, size=128)


@pytest.fixture(scope="module")
def found(views):
    return [classic.reconstruct(views.images[s], views.intrinsics[s], SETTINGS) for s in range(3)]


def test_two_views_with_much_texture_give_the_pose(views):
    truth = geometry.relative(views.extrinsics[:, 0], views.extrinsics[:, 1])
    pose = [classic.reconstruct(views.images[s, :2], views.intrinsics[s, :2], SETTINGS).extrinsics[1] for s in range(3)]
    assert geometry.pose_auc(torch.stack(pose), truth) > 0.7


def test_further_views_are_added_by_their_points(views, found):
    truth = geometry.all_pairs(views.extrinsics)
    poses = geometry.all_pairs(torch.stack([one.extrinsics for one in found]))
    assert not poses.isnan().any()
    assert geometry.pose_auc(poses, truth) > 0.7


def test_points_are_where_the_scene_is(views, found):
    for scene, one in enumerate(found):
        first = one.view == 0
        assert first.sum() > 20
        x, y = one.pixels[first].round().long().clamp(0, 127).T
        inside = views.points[scene, 0, y, x] @ views.extrinsics[scene, 0, :, :3].T + views.extrinsics[scene, 0, :, 3]
        assert geometry.aligned_errors(one.points[first], inside).median() < 0.05


def test_a_depth_map_takes_the_nearest_point():
    pose = torch.stack([torch.eye(3, 4), torch.full((3, 4), torch.nan)])
    camera = torch.tensor([[4.0, 0, 4], [0, 4, 4], [0, 0, 1]])
    points = torch.tensor([[-2.0, -2.0, 2.0], [5.0, 5.0, 5.0], [0.0, 0.0, -1.0]])  # at (0, 0), (8, 8), and behind
    one = classic.Reconstructed(pose, points, torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))
    depth = classic.dense(one, 0, camera, 8, 8)
    assert depth[0, 0] == depth[1, 2] == 2
    assert depth[7, 7] == depth[6, 5] == 5
    assert torch.equal(classic.dense(one, 1, camera, 8, 8), torch.ones(8, 8))


def test_what_cannot_be_matched_is_nan_and_not_an_error():
    flat = torch.full((3, 3, 32, 32), 0.5)
    one = classic.reconstruct(flat, torch.eye(3).expand(3, -1, -1))
    assert one.extrinsics[1:].isnan().all()
    assert len(one.points) == 0
    assert torch.equal(classic.dense(one, 0, torch.eye(3), 4, 4), torch.ones(4, 4))


def test_bad_input_is_named(views):
    with pytest.raises(ValueError, match="at least two views"):
        classic.reconstruct(views.images[0, :1], views.intrinsics[0, :1])
    with pytest.raises(ValueError, match=r"intrinsics must be \(4, 3, 3\)"):
        classic.reconstruct(views.images[0], views.intrinsics[0, :2])
    for wrong in ({"enlarge": 0}, {"ratio": 0.0}, {"tolerance": 0.0}, {"contrast": -1.0}):
        with pytest.raises(ValueError, match="enlarge must be"):
            dataclasses.replace(SETTINGS, **wrong)
