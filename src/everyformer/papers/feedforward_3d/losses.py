"""Losses of both families: regression that each pixel's confidence weighs, free of scale."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from everyformer.papers.feedforward_3d.cameras import pose_encode
from everyformer.papers.feedforward_3d.heads import Pointmap
from everyformer.papers.feedforward_3d.multiview import Reconstruction

ALPHA = 0.2  # what confidence earns
DISCOUNT = 0.6  # weight of a refinement beside the next
KEPT = 0.98  # share of the pixels that count: the worst are taken for faults of the ground truth


def pair_loss(
    first: Pointmap,
    second: Pointmap,
    points1: Float[Tensor, "batch height width 3"],
    points2: Float[Tensor, "batch height2 width2 3"],
    valid1: Bool[Tensor, "batch height width"] | None = None,
    valid2: Bool[Tensor, "batch height2 width2"] | None = None,
    *,
    alpha: float = ALPHA,
) -> Float[Tensor, ""]:
    """DUSt3R's loss: C |x / s - y / s'| - alpha log C, its mean over view 1 plus that over view 2.

    Each side is divided by the mean distance of its valid points, of both views, from the camera of view 1.

    Args:
        first, second: what the model gave.
        points1, points2: the truth, in the frame of view 1.
        valid1, valid2: pixels that have a truth; all if left out. A view without any counts zero, with a warning.
        alpha: positive.

    Raises:
        ValueError: shapes that do not fit, an alpha that is not positive.

    Source: arXiv 2312.14132, section 3.2.
    """
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    valid1, valid2 = _checked("1", first, points1, valid1), _checked("2", second, points2, valid2)
    points1, points2 = _kept(points1, valid1), _kept(points2, valid2)
    mine = mean_distance([(first.points, valid1), (second.points, valid2)])
    truth = mean_distance([(points1, valid1), (points2, valid2)])
    total = first.points.new_zeros(())
    for given, points, valid in ((first, points1, valid1), (second, points2, valid2)):
        error = torch.linalg.vector_norm(given.points / mine - points / truth, dim=-1)
        total = total + _mean(given.confidence * error - alpha * given.confidence.log(), valid)
    return total


def scale_shift_error(
    first: Pointmap,
    second: Pointmap,
    points1: Float[Tensor, "batch height width 3"],
    points2: Float[Tensor, "batch height2 width2 3"],
    valid1: Bool[Tensor, "batch height width"] | None = None,
    valid2: Bool[Tensor, "batch height2 width2"] | None = None,
) -> Float[Tensor, ""]:
    """DUSt3R's test: mean distance after the median depth and the median size of both clouds are made the same.

    The unit is that of the truth; arguments and errors as of :func:`pair_loss`.
    """
    valid1, valid2 = _checked("1", first, points1, valid1), _checked("2", second, points2, valid2)
    given = _joint(first.points, second.points, valid1, valid2)
    given = given / given.norm(dim=-1).nanmean(1)[:, None, None].clamp(min=1e-8)
    truth = _joint(points1, points2, valid1, valid2)
    given, truth = (
        torch.cat([cloud[..., :2], cloud[..., 2:] - cloud[..., 2:].nanmedian(1, keepdim=True).values], -1)
        for cloud in (given, truth)
    )
    mine, wanted = (
        (cloud - cloud.nanmedian(1, keepdim=True).values).norm(dim=-1).nanmedian(1).values for cloud in (given, truth)
    )
    distance = (given * (wanted / mine.clamp(1e-3, 1e3))[:, None, None] - truth).norm(dim=-1)
    pixels = valid1[0].numel()
    return _mean(distance[:, :pixels], valid1.flatten(1)) + _mean(distance[:, pixels:], valid2.flatten(1))


class MultiViewLoss(NamedTuple):
    """The weighted sum, and its parts before their weights."""

    total: Float[Tensor, ""]
    camera: Float[Tensor, ""]
    depth: Float[Tensor, ""]
    points: Float[Tensor, ""]


class Scene(NamedTuple):
    """Ground truth of a batch of views, in the units and the frame that a multi-view model learns."""

    depth: Float[Tensor, "batch views height width"]
    points: Float[Tensor, "batch views height width 3"]
    extrinsics: Float[Tensor, "batch views 3 4"]
    scale: Float[Tensor, "batch"]


def normalise_scene(
    depth: Float[Tensor, "batch views height width"],
    points: Float[Tensor, "batch views height width 3"],
    extrinsics: Float[Tensor, "batch views 3 4"],
    valid: Bool[Tensor, "batch views height width"],
) -> Scene:
    """The scene in the frame of the first camera, lengths divided by the mean distance of its valid points.

    ``points`` and ``extrinsics`` (world to camera) come in any world; pixels that are not valid become zero.
    """
    turn, shift = extrinsics[:, :1, :, :3], extrinsics[:, :1, :, 3]
    seen = _kept(_kept(points, valid) @ turn[:, :, None].mT + shift[:, :, None, None], valid)
    scale = mean_distance([(seen, valid)]).flatten()
    rotations = extrinsics[..., :3] @ turn.mT
    translations = extrinsics[..., 3] - (rotations @ shift[..., None])[..., 0]
    poses = torch.cat([rotations, (translations / scale[:, None, None])[..., None]], -1)
    kept = torch.where(valid, depth, torch.zeros_like(depth))
    return Scene(kept / scale[:, None, None, None], seen / scale[:, None, None, None, None], poses, scale)


def multiview_loss(
    found: Reconstruction,
    *,
    depth: Float[Tensor, "batch views height width"],
    points: Float[Tensor, "batch views height width 3"],
    extrinsics: Float[Tensor, "batch views 3 4"],
    intrinsics: Float[Tensor, "batch views 3 3"],
    valid: Bool[Tensor, "batch views height width"] | None = None,
    camera_weight: float = 5.0,
    depth_weight: float = 1.0,
    points_weight: float = 0.0,
) -> MultiViewLoss:
    """VGGT's loss on cameras, depth and, with a weight, points; the truth may be in any world and unit.

    Cameras: L1 on the pose code of each refinement, the last counting most. Depth and points: the error weighed by
    confidence, the plain error, and that of differences between neighbours (depth) or of normals (points) on several
    scales. A batch without valid pixels counts zero for both, with a warning.

    Raises ``ValueError`` for shapes that do not fit. Source: arXiv 2503.11651, section 3.4, with L1 for Huber's loss and
    the weights of the code released for fine-tuning.
    """
    shape = found.depth.shape
    wanted = {
        "depth": (depth, shape),
        "points": (points, (*shape, 3)),
        "extrinsics": (extrinsics, (*shape[:2], 3, 4)),
        "intrinsics": (intrinsics, (*shape[:2], 3, 3)),
    }
    for name, (tensor, expected) in wanted.items():
        if tensor.shape != expected:
            raise ValueError(f"{name} must have shape {tuple(expected)}, got {tuple(tensor.shape)}")
    valid = torch.ones_like(depth, dtype=torch.bool) if valid is None else valid
    if valid.shape != shape or valid.dtype != torch.bool:
        raise ValueError(f"valid must be boolean of shape {tuple(shape)}, got {valid.dtype} {tuple(valid.shape)}")
    scene = normalise_scene(depth, points, extrinsics, valid)

    codes = pose_encode(scene.extrinsics, intrinsics, (shape[-2], shape[-1]))
    error = (found.pose_codes - codes).abs()
    per_part = error[..., :3].clamp(max=100).mean((1, 2, 3)) + error[..., 3:7].mean((1, 2, 3))
    per_part = per_part + 0.5 * error[..., 7:].mean((1, 2, 3))
    steps = torch.arange(len(error) - 1, -1, -1, device=error.device)
    camera = (DISCOUNT**steps * per_part).mean()

    def flat(tensor: Tensor) -> Tensor:
        return tensor.flatten(0, 1)

    mask = flat(valid)
    if not bool(mask.any()):
        warnings.warn("valid has no pixel: depth and points count zero", stacklevel=2)
    sure = flat(found.depth_confidence)
    off = flat(found.depth - scene.depth)
    of_depth = _regression(off.abs(), sure, mask) + _slopes(off, sure, mask)
    of_points = found.points.sum() * 0
    if points_weight:
        sure = flat(found.points_confidence)
        distance = flat(torch.linalg.vector_norm(found.points - scene.points, dim=-1))
        of_points = _regression(distance, sure, mask) + _normals(flat(found.points), flat(scene.points), sure, mask)
    total = camera_weight * camera + depth_weight * of_depth + points_weight * of_points
    return MultiViewLoss(total, camera, of_depth, of_points)


def _regression(error: Tensor, sure: Tensor, valid: Tensor) -> Tensor:
    """Mean of the weighed error plus mean of the plain one, each without its worst pixels."""
    return _mean_of_best(sure * error - ALPHA * sure.log(), valid) + _mean_of_best(error, valid)


def _slopes(error: Float[Tensor, "views height width"], sure: Tensor, valid: Tensor) -> Tensor:
    """Differences of the error between neighbours, at strides 1, 2, 4 and 8, per valid pixel."""
    total = error.new_zeros(())
    for step in (1, 2, 4, 8):
        e, c, v = (tensor[:, ::step, ::step] for tensor in (error, sure, valid))
        parts = error.new_zeros(())
        for axis in (1, 2):
            length = e.shape[axis] - 1
            (e0, e1), (c0, c1), (v0, v1) = (
                (tensor.narrow(axis, 0, length), tensor.narrow(axis, 1, length)) for tensor in (e, c, v)
            )
            weight = c0 * c1
            # The product of both confidences weighs a difference, and each earns its logarithm.
            slope = weight * (e1 - e0).abs().clamp(max=100) - ALPHA * weight.log()
            parts = parts + torch.where(v0 & v1, slope, torch.zeros_like(slope)).sum()
        total = total + parts / v.sum().clamp(min=1)
    return total / 4


def _normals(points: Float[Tensor, "views height width 3"], truth: Tensor, sure: Tensor, valid: Tensor) -> Tensor:
    """One minus the cosine between normals of neighbouring points, at strides 1, 2 and 4, weighed by confidence."""
    total = points.new_zeros(())
    for step in (1, 2, 4):
        p, t, c, v = (tensor[:, ::step, ::step] for tensor in (points, truth, sure, valid))
        mine, theirs = (
            torch.linalg.cross(cloud[:, :-1, 1:] - cloud[:, :-1, :-1], cloud[:, 1:, :-1] - cloud[:, :-1, :-1])
            for cloud in (p, t)
        )
        known = v[:, :-1, :-1] & v[:, :-1, 1:] & v[:, 1:, :-1] & (theirs.abs().sum(-1) > 0)
        bend = 1 - torch.cosine_similarity(mine, theirs, dim=-1)
        c = c[:, :-1, :-1]
        total = total + _mean(c * bend - ALPHA * c.log(), known)
    return total / 3


def mean_distance(clouds: list[tuple[Tensor, Tensor]]) -> Float[Tensor, "batch 1 1 1"]:
    """Mean distance from the origin of the valid points of (points, valid) pairs, sample by sample."""
    total = sum(_kept_scalar(cloud.norm(dim=-1), valid).flatten(1).sum(1) for cloud, valid in clouds)
    count = sum(valid.flatten(1).sum(1) for _, valid in clouds)
    return (total / (count + 1e-8)).clamp(min=1e-8)[:, None, None, None]  # type: ignore[union-attr, no-any-return]


def _checked(number: str, given: Pointmap, points: Tensor, valid: Tensor | None) -> Tensor:
    """The mask, all true if there is none."""
    if points.shape != given.points.shape:
        raise ValueError(f"points{number} must have shape {tuple(given.points.shape)}, got {tuple(points.shape)}")
    if valid is None:
        return torch.ones_like(given.confidence, dtype=torch.bool)
    if valid.shape != given.confidence.shape or valid.dtype != torch.bool:
        raise ValueError(
            f"valid{number} must be boolean of shape {tuple(given.confidence.shape)}, got {valid.dtype} "
            f"{tuple(valid.shape)}"
        )
    if not bool(valid.any()):
        warnings.warn(f"valid{number} has no pixel: the view counts zero", stacklevel=3)
    return valid


def _joint(points1: Tensor, points2: Tensor, valid1: Tensor, valid2: Tensor) -> Float[Tensor, "batch points 3"]:
    """Both views' points, NaN where there is no truth."""
    return torch.cat(
        [
            torch.where(valid[..., None], points, torch.nan).flatten(1, 2)
            for points, valid in ((points1, valid1), (points2, valid2))
        ],
        dim=1,
    )


def _kept(points: Float[Tensor, "*shape 3"], valid: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape 3"]:
    """Zero where there is no truth, which may be anything there, NaN too."""
    return torch.where(valid[..., None], points, torch.zeros_like(points))


def _kept_scalar(values: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, values, torch.zeros_like(values))


def _mean(values: Tensor, valid: Tensor) -> Float[Tensor, ""]:
    """Mean of the valid ones; zero if there is none."""
    return _kept_scalar(values, valid).sum() / valid.sum().clamp(min=1)


def _mean_of_best(values: Tensor, valid: Tensor) -> Float[Tensor, ""]:
    """Mean of the valid ones up to their 0.98 quantile; zero if there is none."""
    known = values[valid]
    if not known.numel():
        return values.sum() * 0
    rank = max(1, round(KEPT * known.numel()))
    return _mean(known, known <= known.detach().kthvalue(rank).values)
