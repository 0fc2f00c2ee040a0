import math

import pytest
import torch

from everyformer.lab import scenes
from everyformer.papers.feedforward_3d import geometry


def rotations(count, seed=0):
    q, r = torch.linalg.qr(torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(seed)))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    return q * torch.linalg.det(q)[:, None, None]


def turned(degrees):
    """A turn about the vertical axis."""
    a = math.radians(degrees)
    return torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])


def posed(rotation, *shift):
    return torch.cat([rotation, torch.tensor(shift)[:, None]], 1)


@pytest.mark.parametrize("scale", [True, False])
def test_procrustes_finds_the_similarity(scale):
    x = torch.randn(4, 20, 3)
    truth = geometry.Similarity(
        torch.tensor([0.5, 1, 2, 3]) if scale else torch.ones(4), rotations(4), torch.randn(4, 3)
    )
    found = geometry.procrustes(x, truth(x), scale=scale)
    assert torch.allclose(found.scale, truth.scale, atol=1e-5)
    assert torch.allclose(found.rotation, truth.rotation, atol=1e-5)
    assert torch.allclose(found.translation, truth.translation, atol=1e-5)


def test_procrustes_gives_outliers_the_weight_it_is_told():
    x = torch.randn(30, 3)
    truth = geometry.Similarity(torch.tensor(1.7), rotations(1)[0], torch.randn(3))
    y, weights = truth(x).clone(), torch.ones(30)
    y[:10] += 5 * torch.randn(10, 3)
    weights[:10] = 0
    assert torch.allclose(geometry.procrustes(x, y, weights)(x), truth(x), atol=1e-4)
    assert not torch.allclose(geometry.procrustes(x, y)(x), truth(x), atol=0.1)


def test_procrustes_gives_no_reflection():
    x = torch.randn(10, 3)
    found = geometry.procrustes(x, x * torch.tensor([1.0, 1.0, -1.0]))
    geometry.check_rotation(found.rotation)
    assert found.scale > 0


def test_no_weighted_similarity_nearby_is_better():
    x, y, weights = torch.randn(12, 3), torch.randn(12, 3), torch.rand(12)
    found = geometry.procrustes(x, y, weights)

    def cost(similarity):
        return (weights * (similarity(x) - y).square().sum(-1)).sum()

    for seed in range(20):
        step = torch.linalg.matrix_exp(0.01 * torch.randn(3, 3).tril(-1).sub(torch.randn(3, 3).tril(-1).T * 0))
        q, _ = torch.linalg.qr(step)
        q = q * torch.linalg.qr(step)[1].diagonal().sign()
        near = geometry.Similarity(found.scale * (1 + 0.01 * (-1) ** seed), q @ found.rotation, found.translation)
        assert cost(near) >= cost(found)


def test_pnp_finds_the_camera_among_outliers():
    views = scenes.views(1, 2, torch.Generator().manual_seed(0), textured=False, size=32)
    points = views.points[0, 1].clone()
    grid = geometry.pixel_grid(32, 32, points)
    points[:8] += torch.randn(8, 32, 3)
    found = geometry.pnp(points, grid, views.intrinsics[0, 1], tolerance=1.0, iterations=50)
    turn, shift = geometry.pose_errors(found, views.extrinsics[0, 1])
    assert turn < 0.5
    assert shift < 0.5


def test_points_project_to_their_pixels():
    views = scenes.views(2, 3, torch.Generator().manual_seed(0), textured=False, size=24)
    pixels, depth = geometry.project(views.points, views.intrinsics, views.extrinsics)
    assert torch.allclose(pixels, geometry.pixel_grid(24, 24, pixels).expand_as(pixels), atol=1e-4)
    assert torch.allclose(depth, views.depth, atol=1e-5)


def test_relative_poses_follow_one_another():
    extrinsics, _ = scenes.draw_cameras(1, 3, torch.Generator().manual_seed(0))
    a, b, c = extrinsics[0]
    x = torch.randn(3)
    in_a = a[:, :3] @ x + a[:, 3]
    ab = geometry.relative(a, b)
    assert torch.allclose(ab[:, :3] @ in_a + ab[:, 3], b[:, :3] @ x + b[:, 3], atol=1e-5)
    pairs = geometry.all_pairs(extrinsics)
    assert torch.allclose(pairs[0, 2], geometry.relative(b, c))
    assert pairs.shape == (1, 3, 3, 4)


def test_pose_errors_in_degrees():
    truth = posed(torch.eye(3), 1.0, 0.0, 0.0)
    turn, shift = geometry.pose_errors(posed(turned(12.0), 0.0, 3.0, 0.0), truth)
    assert float(turn) == pytest.approx(12.0, abs=1e-3)
    assert float(shift) == pytest.approx(90.0, abs=1e-3)  # of any length
    turn, shift = geometry.pose_errors(torch.full((3, 4), math.nan), truth)
    assert float(turn) == float(shift) == 180


def test_auc_counts_the_larger_error_up_to_its_limit():
    truth = posed(torch.eye(3), 1.0, 0.0, 0.0).expand(4, -1, -1)
    found = torch.stack([posed(turned(angle), 1.0, 0.0, 0.0) for angle in (0.0, 15.0, 30.0, 60.0)])
    assert geometry.pose_auc(found, truth) == pytest.approx((1 + 0.5) / 4, abs=1e-3)
    assert geometry.pose_auc(found, truth, 60.0) == pytest.approx((1 + 0.75 + 0.5) / 4, abs=1e-3)
    recall = [
        float((torch.maximum(*geometry.pose_errors(found, truth)) < limit).float().mean()) for limit in range(1, 31)
    ]
    assert geometry.pose_auc(found, truth) == pytest.approx(sum(recall) / 30, abs=0.02)  # as histograms have it


def test_aligned_errors_are_blind_to_scale():
    points = torch.randn(5, 6, 3) + torch.tensor([0.0, 0.0, 4.0])
    assert geometry.aligned_errors(3 * points, points).max() < 1e-5
    assert geometry.aligned_errors(points + torch.randn(5, 6, 3), points).median() > 0.05


def test_bad_input_is_named():
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"x and y must be .* alike"):
        geometry.procrustes(x, torch.randn(4, 3))
    with pytest.raises(ValueError, match="at least 3 points, got 2"):
        geometry.procrustes(x[:2], x[:2])
    for weights in (torch.zeros(5), -torch.ones(5), torch.ones(4)):
        with pytest.raises(ValueError, match="weights"):
            geometry.procrustes(x, x, weights)
    with pytest.raises(ValueError, match="x and y must be finite"):
        geometry.procrustes(x, x / 0)
    pixels = torch.rand(5, 2)
    with pytest.raises(ValueError, match="at least 4 points, got 3"):
        geometry.pnp(x, pixels, torch.eye(3), confident=torch.arange(5) < 3)
    with pytest.raises(ValueError, match="points and pixels"):
        geometry.pnp(x, pixels[:3], torch.eye(3))
    pose = posed(torch.eye(3), 0.0, 0.0, 1.0)
    for wrong in (2 * torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, -1.0]))):
        with pytest.raises(ValueError, match="found must hold rotations"):
            geometry.pose_errors(posed(wrong, 0.0, 0.0, 1.0), pose)
    with pytest.raises(ValueError, match=r"found and truth must be"):
        geometry.pose_errors(pose[:, :3], pose)
    with pytest.raises(ValueError, match="degrees must be above 0, got 0"):
        geometry.pose_auc(pose, pose, 0)
    with pytest.raises(ValueError, match=r"must be \(\*points, 3\) alike"):
        geometry.aligned_errors(x, x[:3])
