import dataclasses

import pytest
import torch
import torch.nn.functional as F

from everyformer.lab import scenes


def drawn(*, seed=0, textured=True, count=3, views=3, size=48):
    return scenes.views(count, views, torch.Generator().manual_seed(seed), textured=textured, size=size)


def seen_by(found, view):
    """Pixels and depths at which a view sees the points of the first one."""
    points = found.points[:, 0].flatten(1, 2)
    camera = points @ found.extrinsics[:, view, :, :3].mT + found.extrinsics[:, view, None, :, 3]
    image = camera @ found.intrinsics[:, view].mT
    return image[..., :2] / image[..., 2:], camera[..., 2]


def test_points_of_a_view_project_to_its_own_pixels():
    found = drawn()
    pixels, depth = seen_by(found, 0)
    x = torch.arange(48.0).repeat(48)
    assert (pixels[..., 0] - x).abs().max() < 1e-4
    assert (pixels[..., 1] - x.view(48, 48).T.flatten()).abs().max() < 1e-4
    assert torch.allclose(depth, found.depth[:, 0].flatten(1), atol=1e-5)


@pytest.mark.parametrize("view", [1, 2])
def test_points_are_where_another_view_sees_them_or_behind_what_it_sees(view):
    found = drawn(size=96)
    pixels, depth = seen_by(found, view)
    grid = pixels[:, None] / 48 - 1 + 1 / 96
    met = F.grid_sample(found.depth[:, view, None], grid, align_corners=False)[:, 0, 0]
    inside = (pixels > 1).all(-1) & (pixels < 94).all(-1)
    gap = ((depth - met) / met)[inside]
    assert inside.float().mean() > 0.5
    assert (gap > -0.02).float().mean() > 0.97  # nothing is in front of what is seen, but for depth read across an edge
    assert (gap.abs() < 0.01).float().mean() > 0.6  # visible in both


def test_normals_are_of_unit_length_and_face_the_camera():
    found = drawn()
    eye = -(found.extrinsics[..., :3].mT @ found.extrinsics[..., 3:])[..., 0]
    ray = found.points - eye[:, :, None, None]
    assert torch.allclose(found.normals.norm(dim=-1), torch.ones(()), atol=1e-5)
    assert ((ray * found.normals).sum(-1) <= 1e-4).all()


def test_normals_are_those_of_the_surface():
    found = drawn(count=6, views=1, size=96)
    points = found.points[:, 0]
    across, along = points.diff(dim=2)[:, :-1], points.diff(dim=1)[:, :, :-1]
    measured = F.normalize(torch.linalg.cross(along, across), dim=-1)
    agree = (measured * found.normals[:, 0, :-1, :-1]).sum(-1)
    assert (agree > 0.98).float().mean() > 0.9  # all but edges and rims


def test_views_and_scenes_in_one_batch_are_what_they_are_alone():
    generator = torch.Generator().manual_seed(3)
    batch = scenes.draw_scenes(4, generator, textured=True)
    cameras = scenes.draw_cameras(4, 2, generator)
    whole = scenes.render(batch, *cameras)
    one = scenes.Scenes(**{name: value[2:3] for name, value in vars(batch).items()})
    alone = scenes.render(one, cameras[0][2:3, 1:], cameras[1][2:3, 1:])
    assert torch.allclose(alone.images, whole.images[2:3, 1:], atol=1e-5)
    assert torch.allclose(alone.depth, whole.depth[2:3, 1:], atol=1e-5)


def test_scenes_follow_the_seed():
    assert torch.equal(drawn(seed=5).images, drawn(seed=5).images)
    assert not torch.equal(drawn(seed=5).images, drawn(seed=6).images)


def test_plain_scenes_have_flat_colours_and_textured_ones_do_not():
    rough, flat = (drawn(textured=textured, count=4).images.diff(dim=-1).abs() for textured in (True, False))
    assert (flat < 1e-3).float().mean() > 0.7
    assert (rough < 1e-3).float().mean() < 0.3


def test_cameras_stand_10_to_40_degrees_along_an_arc_and_look_at_the_middle():
    extrinsics, intrinsics = scenes.draw_cameras(200, 4, torch.Generator().manual_seed(0))
    eye = -(extrinsics[..., :3].mT @ extrinsics[..., 3:])[..., 0]
    azimuth = torch.rad2deg(torch.atan2(eye[..., 0], -eye[..., 2]))
    away = (azimuth[:, 1:] - azimuth[:, :1]).abs()
    assert 4 < away.min() < 16 < 34 < away.max() < 46  # targets differ a little
    middle = extrinsics[..., 3] + extrinsics[..., :3] @ torch.tensor([0.0, 0.4, 0.0])
    assert (middle[..., 2] > 2.5).all()
    assert (torch.rad2deg(torch.atan2(middle[..., :2].norm(dim=-1), middle[..., 2])) < 8).all()
    assert torch.allclose(torch.linalg.det(extrinsics[..., :3]), torch.ones(()), atol=1e-5)
    assert torch.equal(intrinsics[:, 0], intrinsics[:, 3])


def test_things_that_are_not_there_are_not_seen():
    generator = torch.Generator().manual_seed(0)
    batch = scenes.draw_scenes(2, generator, textured=False)
    empty = dataclasses.replace(
        batch, box_half=torch.zeros_like(batch.box_half), ball_radius=torch.zeros_like(batch.ball_radius)
    )
    found = scenes.render(empty, *scenes.draw_cameras(2, 2, generator, size=32), size=32)
    assert (found.normals.abs().amax(-1) == 1).all()  # walls only
    assert found.depth.max() < 20


def test_bad_input_is_named():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        scenes.draw_scenes(0, generator, textured=True)
    batch = scenes.draw_scenes(2, generator, textured=True)
    with pytest.raises(ValueError, match="for 2 scenes"):
        scenes.render(batch, *scenes.draw_cameras(3, 2, generator))
