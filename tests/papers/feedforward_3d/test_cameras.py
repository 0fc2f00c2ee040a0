"""Cameras: codes and back, points from depth, and focal lengths from points."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.feedforward_3d import focal_from_pointmap, pose_decode, pose_encode, unproject
from everyformer.papers.feedforward_3d.cameras import CameraHead, quaternion, rotation


def cameras(count, seed=0, size=(24, 32)):
    torch.manual_seed(seed)
    extrinsics = torch.cat([rotation(torch.randn(count, 4)), torch.randn(count, 3, 1)], -1)
    intrinsics = torch.zeros(count, 3, 3)
    intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 2, 2] = 20 + 20 * torch.rand(count), 30.0, 1.0
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = size[1] / 2, size[0] / 2
    return extrinsics, intrinsics


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_codes_bring_cameras_back(seed):
    extrinsics, intrinsics = cameras(6, seed)
    codes = pose_encode(extrinsics, intrinsics, (24, 32))
    assert codes.shape == (6, 9)
    assert (codes[:, 6] >= 0).all()
    torch.testing.assert_close(codes[:, 3:7].norm(dim=-1), torch.ones(6))
    found = pose_decode(codes, (24, 32))
    torch.testing.assert_close(found[0], extrinsics, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], intrinsics, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("axis", range(3))
def test_half_turns_and_their_neighbours_have_quaternions(axis):
    for angle in (torch.pi, torch.pi - 1e-4, 0.0, 1e-4):
        given = torch.zeros(4)
        given[axis], given[3] = torch.sin(torch.tensor(angle / 2)), torch.cos(torch.tensor(angle / 2))
        found = rotation(quaternion(rotation(given)))
        torch.testing.assert_close(found, rotation(given), atol=1e-5, rtol=0)


def test_quaternions_of_any_length_turn_the_same_and_zero_does_not_turn():
    given = torch.randn(5, 4)
    torch.testing.assert_close(rotation(given), rotation(3 * given))
    assert torch.equal(rotation(torch.zeros(4)), torch.eye(3))


def test_a_field_of_view_of_nothing_or_everything_gives_finite_focals():
    codes = torch.zeros(2, 9, requires_grad=True)
    fields = torch.tensor([[0.0, 0.0], [4.0, 9.0]])
    _, intrinsics = pose_decode(torch.cat([codes[:, :7], fields], -1), (24, 32))
    assert torch.isfinite(intrinsics).all()
    assert (intrinsics[:, [0, 1], [0, 1]] > 0).all()


def test_depth_becomes_points_that_project_to_their_pixels():
    extrinsics, intrinsics = cameras(2, 3)
    depth = 1 + torch.rand(2, 24, 32)
    world = unproject(depth, extrinsics, intrinsics)
    seen = world @ extrinsics[:, None, :, :3].mT + extrinsics[:, None, None, :, 3]
    torch.testing.assert_close(seen[..., 2], depth, atol=1e-5, rtol=1e-5)
    pixels = seen @ intrinsics[:, None].mT
    pixels = pixels[..., :2] / pixels[..., 2:]
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    torch.testing.assert_close(pixels, torch.stack([columns, rows], -1).expand(2, -1, -1, -1), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("method", ["weiszfeld", "median"])
def test_the_focal_length_of_a_pointmap_in_spite_of_outliers(method):
    _, intrinsics = cameras(1)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = 27.0
    same = torch.eye(4)[None, :3]
    points = unproject(1 + torch.rand(1, 24, 32), same, intrinsics)
    points[0, :4, :5, 0] += 3  # a twentieth of the pixels is wrong
    found = focal_from_pointmap(points, method=method)
    assert float(found) == pytest.approx(27.0, rel=2e-2)
    moved = focal_from_pointmap(points, torch.tensor([[10.0, 10.0]]), method=method)
    assert float(moved) != pytest.approx(27.0, rel=2e-2)


def test_refinements_differ_and_only_the_first_is_learnt_from_the_start():
    head = CameraHead(16, depth=1, heads=2, refinements=3)
    torch.nn.init.normal_(head.start)
    tokens = torch.randn(2, 4, 16)
    codes = head(tokens)
    assert codes.shape == (3, 2, 4, 9)
    assert not torch.allclose(codes[1], codes[2])
    assert (codes[..., 7:] >= 0).all()
    used = [torch.autograd.grad(code.sum(), head.start, retain_graph=True)[0].any() for code in codes]
    assert used == [True, False, False]


def test_bad_cameras_are_named():
    extrinsics, intrinsics = cameras(2)
    with pytest.raises(ValueError, match=r"must be rotations, got one off by"):
        pose_encode(2 * extrinsics, intrinsics, (24, 32))
    with pytest.raises(ValueError, match="or mirrored"):
        pose_encode(extrinsics * torch.tensor([[1.0], [1.0], [-1.0]]), intrinsics, (24, 32))
    with pytest.raises(ValueError, match="must have positive focal lengths, got 0"):
        pose_encode(extrinsics, intrinsics * 0, (24, 32))
    with pytest.raises(
        ValueError, match=r"extrinsics must be \(..., 3, 4\) and intrinsics \(..., 3, 3\), got \(2, 4, 4\)"
    ):
        pose_encode(torch.eye(4).expand(2, 4, 4), intrinsics, (24, 32))
    with pytest.raises(ValueError, match=r"codes must be \(..., 9\), got \(2, 7\)"):
        pose_decode(torch.zeros(2, 7), (24, 32))
    with pytest.raises(
        ValueError, match=r"beside depth \(..., height, width\), got \(2, 3, 4\), \(2, 3, 3\) and \(3, 24"
    ):
        unproject(torch.rand(3, 24, 32), extrinsics, intrinsics)
    with pytest.raises(ValueError, match=r"points must be \(batch, height, width, 3\), got \(24, 32, 3\)"):
        focal_from_pointmap(torch.rand(24, 32, 3))
    with pytest.raises(ValueError, match=r"principal must be \(batch, 2\) = \(1, 2\), got \(2,\)"):
        focal_from_pointmap(torch.rand(1, 24, 32, 3), torch.zeros(2))
    with pytest.raises(ValueError, match='method must be "weiszfeld" or "median", got \'mean\''):
        focal_from_pointmap(torch.rand(1, 24, 32, 3), method="mean")
