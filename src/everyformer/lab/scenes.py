"""Rendered scenes with exact ground truth: a room with boxes and spheres, seen by cameras around it.

Rays are cast for all scenes, views and pixels at once. World and camera axes are OpenCV's (x right, y down, z forward).
Pixels have their centres at whole numbers and the principal point is (width / 2, height / 2), as DUSt3R and VGGT have it.
Lengths are in the world's unit: a room is about five wide.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

BOXES = SPHERES = 3  # at most, of each
WALLS = ((1, 1), (1, -1), (0, -1), (0, 1), (2, 1))  # axis and side: floor, ceiling, left, right, back
SURFACES = len(WALLS) + BOXES + SPHERES
NOISE = 32  # cells on a side of the noise that textures are cut from
AMBIENT = 0.3  # the share of light that comes from all around
FAR = 1e6  # where a ray hits nothing


@dataclasses.dataclass(frozen=True)
class Scenes:
    """A batch of rooms: walls at ``+-room`` about the origin, without one behind the cameras.

    Boxes stand upright, turned by ``turn`` (radians); things that are not there have a size of zero. ``colours`` (RGB),
    ``contrast`` of the texture and ``checked`` (squares, or else clouds) are by surface: walls, boxes, spheres.
    """

    room: Float[Tensor, "scenes 3"]
    box_centre: Float[Tensor, "scenes boxes 3"]
    box_half: Float[Tensor, "scenes boxes 3"]
    turn: Float[Tensor, "scenes boxes"]
    ball_centre: Float[Tensor, "scenes balls 3"]
    ball_radius: Float[Tensor, "scenes balls"]
    colours: Float[Tensor, "scenes surfaces 3"]
    contrast: Float[Tensor, "scenes surfaces"]
    checked: Bool[Tensor, "scenes surfaces"]
    noise: Float[Tensor, "scenes cells cells cells"]
    light: Float[Tensor, "scenes 3"]


@dataclasses.dataclass(frozen=True)
class Views:
    """What cameras see: images in [0, 1], depth along the optical axis, points and normals in the world, and cameras.

    ``extrinsics`` take the world to the camera.
    """

    images: Float[Tensor, "scenes views 3 height width"]
    depth: Float[Tensor, "scenes views height width"]
    points: Float[Tensor, "scenes views height width 3"]
    normals: Float[Tensor, "scenes views height width 3"]
    extrinsics: Float[Tensor, "scenes views 3 4"]
    intrinsics: Float[Tensor, "scenes views 3 3"]


def draw_scenes(count: int, generator: torch.Generator, *, textured: bool) -> Scenes:
    """``count`` rooms with one to three boxes and two or three spheres, textured or in plain colours.

    Raises ``ValueError`` if ``count`` is below one.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    room = torch.cat([uniform(2.2, 2.6, 1), uniform(1.3, 1.6, 1), uniform(1.8, 2.4, 1)], 1)
    half = torch.cat([uniform(0.2, 0.5, BOXES, 1), uniform(0.2, 0.6, BOXES, 1), uniform(0.2, 0.5, BOXES, 1)], 2)
    radius = uniform(0.25, 0.5, SPHERES)
    spots = uniform(-1.0, 1.0, BOXES + SPHERES, 3) * torch.tensor([1.5, 0.0, 1.1])
    floor = room[:, 1, None]
    spots[:, :BOXES, 1] = floor - half[..., 1]
    spots[:, BOXES:, 1] = floor - radius
    there = torch.arange(BOXES) < torch.randint(1, BOXES + 1, (count, 1), generator=generator)
    there_too = torch.arange(SPHERES) < torch.randint(2, SPHERES + 1, (count, 1), generator=generator)
    light = uniform(-0.15, 0.15, 3) + torch.tensor([0.8, -0.9, -0.5])  # towards the lamp: right, above, in front
    return Scenes(
        room=room,
        box_centre=spots[:, :BOXES],
        box_half=half * there[..., None],
        turn=uniform(0.0, math.pi / 2, BOXES),
        ball_centre=spots[:, BOXES:],
        ball_radius=radius * there_too,
        colours=uniform(0.5, 1.0, SURFACES, 3),
        contrast=uniform(0.5, 0.9, SURFACES) if textured else torch.zeros(count, SURFACES),
        checked=torch.rand(count, SURFACES, generator=generator) < 0.4,
        noise=torch.rand(count, NOISE, NOISE, NOISE, generator=generator),
        light=F.normalize(light, dim=-1),
    )


def draw_cameras(
    count: int, views: int, generator: torch.Generator, *, size: int = 64
) -> tuple[Float[Tensor, "count views 3 4"], Float[Tensor, "count views 3 3"]]:
    """Extrinsics and intrinsics of cameras that look at the middle of a room.

    Seen from above, the first camera stands at one end of an arc and the others 10 to 40 degrees along it. A scene's
    cameras share a focal length.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    baseline = uniform(10.0, 40.0, views)
    baseline[:, 0] = 0
    side = (torch.randint(2, (count, 1), generator=generator) * 2 - 1).float()
    azimuth = torch.deg2rad(side * (baseline - 20.0) + uniform(-10.0, 10.0, 1))
    elevation = torch.deg2rad(uniform(5.0, 15.0, views))
    flat = elevation.cos()
    around = torch.stack([azimuth.sin() * flat, -elevation.sin(), -azimuth.cos() * flat], -1)
    target = uniform(-0.1, 0.1, views, 3) + torch.tensor([0.0, 0.4, 0.0])
    extrinsics = look_at(target + uniform(3.3, 3.9, views, 1) * around, target)
    focal = size / 2 / torch.tan(torch.deg2rad(uniform(52.0, 60.0, 1)) / 2)
    intrinsics = torch.zeros(count, views, 3, 3)
    intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = focal
    intrinsics[..., :2, 2] = size / 2
    intrinsics[..., 2, 2] = 1
    return extrinsics, intrinsics


def look_at(eye: Float[Tensor, "*batch 3"], target: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 4"]:
    """Extrinsics of upright cameras at ``eye`` that look at ``target``."""
    forward = F.normalize(target - eye, dim=-1)
    down = torch.tensor([0.0, 1.0, 0.0], dtype=eye.dtype, device=eye.device).expand_as(forward)
    right = F.normalize(torch.linalg.cross(down, forward), dim=-1)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], -2)
    return torch.cat([rotation, -(rotation @ eye[..., None])], -1)


def render(
    scenes: Scenes,
    extrinsics: Float[Tensor, "scenes views 3 4"],
    intrinsics: Float[Tensor, "scenes views 3 3"],
    *,
    size: int = 64,
) -> Views:
    """Images of ``size`` x ``size`` pixels with depth, points and normals.

    Raises ``ValueError`` if the cameras are not one set for each scene.
    """
    if extrinsics.shape[:2] != intrinsics.shape[:2] or len(extrinsics) != len(scenes.room):
        raise ValueError(
            f"extrinsics and intrinsics must be (scenes, views, ...) for {len(scenes.room)} scenes, "
            f"got {tuple(extrinsics.shape)} and {tuple(intrinsics.shape)}"
        )
    ticks = torch.arange(size, dtype=extrinsics.dtype, device=extrinsics.device)
    v, u = torch.meshgrid(ticks, ticks, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1).view(-1, 3)
    rotation, translation = extrinsics[..., :3], extrinsics[..., 3:]
    # In the camera a ray is (x, y, 1), so that the distance along it is the depth.
    rays = (pixels @ torch.linalg.inv(intrinsics).mT) @ rotation
    eye = -(rotation.mT @ translation)[..., 0]
    depth, surface, normals = _cast(scenes, eye[:, :, None].expand_as(rays).flatten(1, 2), rays.flatten(1, 2))
    points = eye[:, :, None] + depth.view(rays.shape[:-1])[..., None] * rays
    colour = _shade(scenes, points.flatten(1, 2), surface, normals)
    shape = (*extrinsics.shape[:2], size, size)
    return Views(
        images=colour.view(*shape, 3).permute(0, 1, 4, 2, 3).contiguous(),
        depth=depth.view(shape),
        points=points.view(*shape, 3),
        normals=normals.view(*shape, 3),
        extrinsics=extrinsics,
        intrinsics=intrinsics,
    )


def views(count: int, number: int, generator: torch.Generator, *, textured: bool, size: int = 64) -> Views:
    """``number`` views of each of ``count`` drawn scenes."""
    scenes = draw_scenes(count, generator, textured=textured)
    return render(scenes, *draw_cameras(count, number, generator, size=size), size=size)


def _cast(
    scenes: Scenes, start: Float[Tensor, "scenes rays 3"], rays: Float[Tensor, "scenes rays 3"]
) -> tuple[Float[Tensor, "scenes rays"], Int[Tensor, "scenes rays"], Float[Tensor, "scenes rays 3"]]:
    """How far the nearest surface is along each ray, which one it is, and its normal (towards the ray's side)."""
    box_distance, box_normals = _boxes(scenes, start, rays)
    distances = [_walls(scenes, start, rays), box_distance, _balls(scenes, start, rays)]
    depth, surface = torch.cat(distances, -1).min(-1)

    walls = rays.new_tensor([[-side * (axis == i) for i in range(3)] for axis, side in WALLS])
    normals = walls[surface.clamp(max=len(WALLS) - 1)]
    box = (surface - len(WALLS)).clamp(0, BOXES - 1)[..., None, None].expand(-1, -1, 1, 3)
    on_box = (surface >= len(WALLS)) & (surface < len(WALLS) + BOXES)
    normals = torch.where(on_box[..., None], box_normals.gather(2, box)[:, :, 0], normals)
    ball = (surface - len(WALLS) - BOXES).clamp(min=0)
    centre = scenes.ball_centre.gather(1, ball[..., None].expand(-1, -1, 3))
    outward = F.normalize(start + depth[..., None] * rays - centre, dim=-1)
    return depth, surface, torch.where((surface >= len(WALLS) + BOXES)[..., None], outward, normals)


def _walls(scenes: Scenes, start: Tensor, rays: Tensor) -> Float[Tensor, "scenes rays walls"]:
    found = []
    for axis, side in WALLS:
        along = (side * scenes.room[:, None, axis] - start[..., axis]) / rays[..., axis]
        found.append(torch.where(rays[..., axis] * side > 1e-6, along, FAR))
    return torch.stack(found, -1)


def _boxes(
    scenes: Scenes, start: Tensor, rays: Tensor
) -> tuple[Float[Tensor, "scenes rays boxes"], Float[Tensor, "scenes rays boxes 3"]]:
    """Distance to each box by slabs in its own axes, and the normal of the side that is hit."""
    turned = _turns(scenes)  # columns are a box's axes in the world
    origin = torch.einsum("srbi,sbij->srbj", start[:, :, None] - scenes.box_centre[:, None], turned)
    along = torch.einsum("sri,sbij->srbj", rays, turned)
    inverse = 1 / torch.where(along.abs() < 1e-9, 1e-9, along)
    half = scenes.box_half[:, None]
    near = -origin * inverse - half * inverse.abs()
    far = -origin * inverse + half * inverse.abs()
    enter, axis = near.max(-1)
    hit = (enter < far.amin(-1)) & (enter > 0) & (half[..., 0] > 0)
    sign = -torch.gather(along, -1, axis[..., None])[..., 0].sign()
    local = F.one_hot(axis, 3).to(rays.dtype) * sign[..., None]
    return torch.where(hit, enter, FAR), torch.einsum("srbj,sbij->srbi", local, turned)


def _turns(scenes: Scenes) -> Float[Tensor, "scenes boxes 3 3"]:
    cos, sin = scenes.turn.cos(), scenes.turn.sin()
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], -1)
    return rows.view(*cos.shape, 3, 3)


def _balls(scenes: Scenes, start: Tensor, rays: Tensor) -> Float[Tensor, "scenes rays balls"]:
    between = start[:, :, None] - scenes.ball_centre[:, None]
    a = rays.square().sum(-1)[..., None]
    b = (between * rays[:, :, None]).sum(-1)
    c = between.square().sum(-1) - scenes.ball_radius[:, None].square()
    inside = b.square() - a * c
    enter = (-b - inside.clamp(min=0).sqrt()) / a
    return torch.where((inside > 0) & (enter > 0) & (scenes.ball_radius[:, None] > 0), enter, FAR)


def _shade(
    scenes: Scenes,
    points: Float[Tensor, "scenes rays 3"],
    surface: Int[Tensor, "scenes rays"],
    normals: Float[Tensor, "scenes rays 3"],
) -> Float[Tensor, "scenes rays 3"]:
    """Colour times texture times Lambert's light."""
    colour = scenes.colours.gather(1, surface[..., None].expand(-1, -1, 3))
    contrast = scenes.contrast.gather(1, surface)
    lit = AMBIENT + (1 - AMBIENT) * (normals * scenes.light[:, None]).sum(-1).clamp(min=0)
    if bool(contrast.any()):
        # Solid textures need no coordinates on surfaces; every surface cuts them elsewhere. Cells of 0.25 and 0.1 units.
        moved = points + 0.37 * surface[..., None]
        squares = ((moved + 0.01) / 0.4).floor().sum(-1).remainder(2)
        clouds = (_noise(scenes, moved / 4) + 0.5 * _noise(scenes, moved.flip(-1) / 1.6)) / 1.5
        clouds = (0.5 + 2.5 * (clouds - 0.5)).clamp(0, 1)
        texture = torch.where(scenes.checked.gather(1, surface), 0.6 * squares + 0.4 * clouds, clouds)
        lit = lit * (1 - contrast * (1 - texture))
    return (colour * lit[..., None]).clamp(0, 1)


def _noise(scenes: Scenes, at: Float[Tensor, "scenes rays 3"]) -> Float[Tensor, "scenes rays"]:
    grid = at[:, :, None, None]
    found = F.grid_sample(scenes.noise[:, None].to(at.dtype), grid, padding_mode="reflection", align_corners=False)
    return found.view(at.shape[:2])
