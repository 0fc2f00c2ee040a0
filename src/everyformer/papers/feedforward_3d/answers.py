"""What each family says of the same images, in one form: points and cameras in the frame of the first view."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.papers.feedforward_3d import classic
from everyformer.papers.feedforward_3d.alignment import Pairs, camera_of, focal_of, global_alignment, intrinsics_of
from everyformer.papers.feedforward_3d.cameras import unproject
from everyformer.papers.feedforward_3d.geometry import pose_auc, relative
from everyformer.papers.feedforward_3d.model import MultiViewModel, PairModel


@dataclasses.dataclass(frozen=True)
class Answer:
    """Points with their confidence, and extrinsics whose world is the first view's camera; NaN where none was found."""

    points: Float[Tensor, "scenes views height width 3"]
    confidence: Float[Tensor, "scenes views height width"]
    extrinsics: Float[Tensor, "scenes views 3 4"]


@torch.no_grad()
def by_pair(net: PairModel, images: Float[Tensor, "scenes 2 3 height width"]) -> Answer:
    """DUSt3R on two views: pointmaps, the focal length that explains the first, and the second's camera by PnP."""
    first, second = net(images[:, 0], images[:, 1])
    centre = torch.tensor([images.shape[-1] / 2, images.shape[-2] / 2]).to(first.points)
    intrinsics = intrinsics_of(focal_of(first.points), centre)
    poses = torch.eye(3, 4).to(first.points).repeat(len(images), 2, 1, 1)
    for scene in range(len(images)):
        try:
            poses[scene, 1] = camera_of(second.points[scene], intrinsics[scene], second.confidence[scene])
        except ValueError:  # no camera fits
            poses[scene, 1] = torch.nan
    points = torch.stack([first.points, second.points], 1)
    return Answer(points, torch.stack([first.confidence, second.confidence], 1), poses)


@torch.no_grad()
def pairs_of(net: PairModel, images: Float[Tensor, "views 3 height width"]) -> Pairs:
    """All ordered pairs of one scene's views; every image is encoded once."""
    edges = torch.tensor(list(itertools.permutations(range(len(images)), 2)), device=images.device)
    tokens, grid = net.encode(images), net.grid(images)
    first, second = net.decode(tokens[edges[:, 0]], tokens[edges[:, 1]], grid, grid)
    points = torch.stack([first.points, second.points], 1)
    return Pairs(edges, points, torch.stack([first.confidence, second.confidence], 1))


def by_alignment(net: PairModel, images: Float[Tensor, "scenes views 3 height width"], *, steps: int) -> Answer:
    """DUSt3R on more views: all pairs, then global alignment, scene by scene."""
    found = []
    for scene in images:
        pairs = pairs_of(net, scene)
        whole = global_alignment(pairs, steps=steps)
        sure = torch.stack([pairs.confidence[pairs.edges == view].mean(0) for view in range(pairs.views)])
        found.append((whole.points, sure, whole.extrinsics))
    points, confidence, extrinsics = (torch.stack(part) for part in zip(*found, strict=True))
    return Answer(in_first(points, extrinsics), confidence, to_first(extrinsics))


@torch.no_grad()
def by_all_views(net: MultiViewModel, images: Float[Tensor, "scenes views 3 height width"]) -> Answer:
    """VGGT in one pass: cameras by its head, points by depth through the cameras, which beat its point head's."""
    found = net(images)
    points = unproject(found.depth, found.extrinsics, found.intrinsics)
    return Answer(in_first(points, found.extrinsics), found.depth_confidence, to_first(found.extrinsics))


def by_matching(
    images: Float[Tensor, "scenes views 3 height width"],
    intrinsics: Float[Tensor, "scenes views 3 3"],
    settings: classic.Settings,
) -> Answer:
    """The classic pipeline; a pixel takes the depth of the nearest point, a view that was not found the first's camera."""
    found = []
    for scene, camera in zip(images, intrinsics, strict=True):
        one = classic.reconstruct(scene, camera, settings)
        depth = torch.stack([classic.dense(one, view, camera[view], *scene.shape[-2:]) for view in range(len(scene))])
        known = torch.where(one.extrinsics.isnan(), one.extrinsics[:1], one.extrinsics)
        found.append((unproject(depth, known, camera), torch.ones_like(depth), one.extrinsics))
    points, confidence, extrinsics = (torch.stack(part) for part in zip(*found, strict=True))
    return Answer(points, confidence, extrinsics)


def tuned(
    images: Float[Tensor, "scenes 2 3 height width"],
    intrinsics: Float[Tensor, "scenes 2 3 3"],
    extrinsics: Float[Tensor, "scenes 2 3 4"],
) -> classic.Settings:
    """The classic pipeline's settings that find the best poses of these pairs."""
    truth = to_first(extrinsics)[:, 1]

    def score(settings: classic.Settings) -> float:
        poses = [classic.reconstruct(*pair, settings).extrinsics[1] for pair in zip(images, intrinsics, strict=True)]
        return pose_auc(torch.stack(poses), truth)

    grid = itertools.product((2,), (0.003, 0.01), (0.75, 0.9), (0.5, 1.0))
    return max((classic.Settings(*values) for values in grid), key=score)


def to_first(extrinsics: Float[Tensor, "scenes views 3 4"]) -> Float[Tensor, "scenes views 3 4"]:
    """Extrinsics whose world is the first view's camera."""
    return relative(extrinsics[:, :1].expand_as(extrinsics), extrinsics)


def in_first(
    points: Float[Tensor, "scenes views height width 3"], extrinsics: Float[Tensor, "scenes views 3 4"]
) -> Float[Tensor, "scenes views height width 3"]:
    """Points of the world in the first view's camera."""
    first = extrinsics[:, 0]
    turned = (points.flatten(1, 3) @ first[:, :, :3].mT).view_as(points)
    return turned + first[:, None, None, None, :, 3]
