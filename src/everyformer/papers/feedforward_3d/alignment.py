"""Global alignment (DUSt3R, arXiv 2312.14132, section 3.4): the pointmaps of many pairs made into one scene.

Every view gets a depth map, a camera and a focal length, every pair a similarity that takes its two pointmaps to the
world; gradient descent makes them agree, all pairs at once.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.papers.feedforward_3d.cameras import quaternion
from everyformer.papers.feedforward_3d.cameras import rotation as rotation_of
from everyformer.papers.feedforward_3d.focal import focal_from_pointmap
from everyformer.papers.feedforward_3d.geometry import Similarity, pixel_grid, pnp, procrustes

CONFIDENT = 3.0  # from where a point counts in PnP
FOCAL_PACE = 20.0  # a focal length is learned as this many times its logarithm
MEAN_SCALE = 0.5  # geometric mean of the pairs' scales: without one the scene could shrink to nothing


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What a pair model says of the ordered pairs ``edges`` of views.

    ``points[e, 0]`` is view ``edges[e, 0]`` and ``points[e, 1]`` is view ``edges[e, 1]``, both in the first one's camera;
    ``confidence`` is at least one.
    """

    edges: Int[Tensor, "edges 2"]
    points: Float[Tensor, "edges 2 height width 3"]
    confidence: Float[Tensor, "edges 2 height width"]

    def __post_init__(self) -> None:
        shape = (len(self.edges), 2, *self.points.shape[2:4])
        if self.edges.dim() != 2 or self.edges.shape[1] != 2 or len(self.edges) < 1:
            raise ValueError(f"edges must be (edges, 2), at least one, got {tuple(self.edges.shape)}")
        if self.points.shape != (*shape, 3) or self.confidence.shape != shape:
            raise ValueError(
                f"points and confidence must be (edges, 2, height, width, 3) and (edges, 2, height, width) for "
                f"{len(self.edges)} edges, got {tuple(self.points.shape)} and {tuple(self.confidence.shape)}"
            )
        if bool((self.edges < 0).any()) or bool((self.edges[:, 0] == self.edges[:, 1]).any()):
            raise ValueError("edges must join two different views, numbered from 0")

    @property
    def views(self) -> int:
        """How many views there are."""
        return int(self.edges.max()) + 1


@dataclasses.dataclass(frozen=True)
class Aligned:
    """A scene in one world: points and depth of every view, cameras, and the loss of every step."""

    points: Float[Tensor, "views height width 3"]
    depth: Float[Tensor, "views height width"]
    extrinsics: Float[Tensor, "views 3 4"]
    intrinsics: Float[Tensor, "views 3 3"]
    losses: Float[Tensor, " steps"]


def global_alignment(pairs: Pairs, *, steps: int = 300, rate: float = 0.01) -> Aligned:
    """Depths, poses, focal lengths and the pairs' similarities by Adam, from a spanning tree of the surest pairs.

    The loss is the mean over pixels of ``log(confidence) * |X_view - s_e (R_e X_pair + t_e)|``, summed over pairs.

    Raises:
        ValueError: a view that no chain of pairs joins to the others, or steps or rate that cannot be.
    """
    if steps < 0 or not rate > 0:
        raise ValueError(f"steps must be at least 0 and rate above 0, got {steps} and {rate}")
    scene = _Scene(pairs)
    weights = pairs.confidence.log()
    optimizer = torch.optim.Adam(scene.parameters(), rate, betas=(0.9, 0.9))
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-6 + (rate - 1e-6) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            away = (scene.points()[pairs.edges] - scene.placed(pairs.points)).norm(dim=-1)
            loss = (weights * away).mean((2, 3)).sum()
            loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        return scene.found(torch.stack(losses) if losses else torch.zeros(0))


class _Scene(nn.Module):
    """What is optimised; poses are quaternions (scalar last) and translations as sign * log1p."""

    rays: Tensor
    centre: Tensor

    def __init__(self, pairs: Pairs) -> None:
        super().__init__()
        height, width = pairs.points.shape[2:4]
        self.edges = pairs.edges
        world, to_world, focal = _spanning_tree(pairs)
        shrink = MEAN_SCALE / to_world.scale.log().mean().exp()
        world = world * shrink
        centre = torch.tensor([width / 2, height / 2]).to(world)
        self.register_buffer("rays", pixel_grid(height, width, world) - centre)
        self.register_buffer("centre", centre)
        intrinsics = intrinsics_of(focal, centre)
        sure = torch.stack([_of_view(pairs, view) for view in range(pairs.views)])
        cameras = torch.stack([camera_of(world[v], intrinsics[v], sure[v]) for v in range(pairs.views)])
        depth = (world * cameras[:, None, None, 2, :3]).sum(-1) + cameras[:, None, None, 2, 3]
        depth_floor = (depth.abs().median() * 1e-3).clamp(min=1e-6)
        turn = cameras[:, :, :3].mT  # from the camera to the world
        place = -(turn @ cameras[:, :, 3:])[..., 0]
        self.log_depth = nn.Parameter(depth.clamp(min=depth_floor).log())
        self.turn = nn.Parameter(quaternion(turn))
        self.place = nn.Parameter(_signed_log(place))
        self.focal = nn.Parameter(FOCAL_PACE * focal.log())
        self.pair_turn = nn.Parameter(quaternion(to_world.rotation))
        self.pair_place = nn.Parameter(_signed_log(to_world.translation / to_world.scale[:, None]))
        self.pair_scale = nn.Parameter((to_world.scale * shrink).log())

    def points(self) -> Float[Tensor, "views height width 3"]:
        """Every view's depth map in the world."""
        depth = self.log_depth.exp()[..., None]
        flat = self.rays / (self.focal / FOCAL_PACE).exp()[:, None, None, None]
        camera = torch.cat([depth * flat, depth], -1)
        return camera @ rotation_of(self.turn)[:, None].mT + _signed_exp(self.place)[:, None, None]

    def placed(self, points: Float[Tensor, "edges 2 height width 3"]) -> Float[Tensor, "edges 2 height width 3"]:
        """The pairs' pointmaps in the world."""
        scale = (self.pair_scale - self.pair_scale.mean()).exp() * MEAN_SCALE
        rotation = (scale[:, None, None] * rotation_of(self.pair_turn)).mT[:, None]
        shift = scale[:, None] * _signed_exp(self.pair_place)
        return (points.flatten(2, 3) @ rotation).view_as(points) + shift[:, None, None, None]

    def found(self, losses: Tensor) -> Aligned:
        """The scene as it is now."""
        rotation = rotation_of(self.turn).mT
        extrinsics = torch.cat([rotation, -(rotation @ _signed_exp(self.place)[..., None])], -1)
        intrinsics = intrinsics_of((self.focal / FOCAL_PACE).exp(), self.centre)
        return Aligned(self.points(), self.log_depth.exp(), extrinsics, intrinsics, losses)


def _spanning_tree(
    pairs: Pairs,
) -> tuple[Float[Tensor, "views height width 3"], Similarity, Float[Tensor, " views"]]:
    """Points of all views in one world, the pairs' similarities to it, and focal lengths (pixels).

    The world is the camera of the surest pair's first view. The surest pair that has one view in it brings the next.
    """
    sure = pairs.confidence.mean((2, 3)).prod(1)
    order = [(int(e), *map(int, pairs.edges[e])) for e in sure.argsort(descending=True)]
    edge, i, j = order[0]
    world = {i: pairs.points[edge, 0], j: pairs.points[edge, 1]}
    while len(world) < pairs.views:
        joining = [(e, i, j) for e, i, j in order if (i in world) != (j in world)]
        if not joining:
            missing = sorted(set(range(pairs.views)) - set(world))
            raise ValueError(f"edges must join all views, got none between {sorted(world)} and {missing}")
        edge, i, j = joining[0]
        known = 0 if i in world else 1
        place = _placing(pairs, torch.tensor([edge]), [world[(i, j)[known]]], known)
        world[(i, j)[1 - known]] = place(pairs.points[edge, 1 - known].view(1, -1, 3)).view_as(pairs.points[0, 0])
    points = torch.stack([world[view] for view in range(pairs.views)])
    to_world = _placing(pairs, torch.arange(len(pairs.edges)), list(points[pairs.edges[:, 0]]), 0)
    best = {i: edge for edge, i, _ in reversed(order)}  # a view's surest pair in which it comes first
    found = focal_of(pairs.points[list(best.values()), 0])
    focal = found.median().repeat(pairs.views)
    focal[list(best)] = found
    return points, to_world, focal


def _placing(pairs: Pairs, edges: Tensor, world: list[Tensor], side: int) -> Similarity:
    """Similarities that take one side's points of pairs to where they are in the world, by confidence."""
    points, confidence = pairs.points[edges, side].flatten(1, 2), pairs.confidence[edges, side].flatten(1)
    return procrustes(points, torch.stack(world).flatten(1, 2), confidence)


def _of_view(pairs: Pairs, view: int) -> Float[Tensor, "height width"]:
    """The highest confidence that any pair has in a view's points."""
    return pairs.confidence[pairs.edges == view].amax(0)


def camera_of(
    points: Float[Tensor, "height width 3"],
    intrinsics: Float[Tensor, "3 3"],
    confidence: Float[Tensor, "height width"],
) -> Float[Tensor, "3 4"]:
    """A view's extrinsics from its points in the world: PnP over the confident ones, or the surer half if too few are.

    Raises ``ValueError`` if no camera fits.
    """
    confident = confidence > CONFIDENT
    if int(confident.sum()) < 4:
        confident = confidence >= confidence.median()
    grid = pixel_grid(points.shape[0], points.shape[1], points)
    return pnp(points, grid, intrinsics, confident=confident)


def focal_of(points: Float[Tensor, "batch height width 3"]) -> Float[Tensor, " batch"]:
    """Focal lengths of pointmaps in their own cameras, kept to fields of view between 6 and 120 degrees."""
    side = max(points.shape[1:3])
    return focal_from_pointmap(points).nan_to_num(nan=float(side)).clamp(0.29 * side, 10 * side)


def intrinsics_of(focal: Float[Tensor, " views"], centre: Float[Tensor, "2"]) -> Float[Tensor, "views 3 3"]:
    """Intrinsics of focal lengths and a principal point, in pixels."""
    found = torch.diag_embed(torch.stack([focal, focal, torch.ones_like(focal)], -1))
    found[:, :2, 2] = centre
    return found


def _signed_log(x: Tensor) -> Tensor:
    return x.sign() * x.abs().log1p()


def _signed_exp(x: Tensor) -> Tensor:
    return x.sign() * x.abs().expm1()
