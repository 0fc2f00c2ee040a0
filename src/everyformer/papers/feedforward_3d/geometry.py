"""Cameras and clouds of points: similarities by Procrustes, cameras by PnP, and how wrong either is.

Extrinsics ``(3, 4)`` take the world to a camera with OpenCV's axes; pixels are (x, y) with centres at whole numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Similarity:
    """The map ``x -> scale * rotation x + translation``."""

    scale: Float[Tensor, "*batch"]
    rotation: Float[Tensor, "*batch 3 3"]
    translation: Float[Tensor, "*batch 3"]

    def __call__(self, points: Float[Tensor, "*batch points 3"]) -> Float[Tensor, "*batch points 3"]:
        return self.scale[..., None, None] * points @ self.rotation.mT + self.translation[..., None, :]


def procrustes(
    x: Float[Tensor, "*batch points 3"],
    y: Float[Tensor, "*batch points 3"],
    weights: Float[Tensor, "*batch points"] | None = None,
    *,
    scale: bool = True,
) -> Similarity:
    """The similarity that takes ``x`` to ``y`` with the least weighted sum of squared distances (Umeyama, 1991).

    Without ``scale`` it is a rigid motion. Raises ``ValueError`` for shapes that disagree, fewer than three points, points
    that are not finite, or weights that are negative or sum to nothing.
    """
    if x.shape != y.shape or x.shape[-1] != 3 or x.dim() < 2:
        raise ValueError(f"x and y must be (*batch, points, 3) alike, got {tuple(x.shape)} and {tuple(y.shape)}")
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise ValueError("x and y must be finite, got infinite or missing coordinates")
    if x.shape[-2] < 3:
        raise ValueError(f"x must have at least 3 points, got {x.shape[-2]}")
    weights = torch.ones_like(x[..., 0]) if weights is None else weights
    if weights.shape != x.shape[:-1] or bool((weights < 0).any()) or not bool((weights.sum(-1) > 0).all()):
        raise ValueError(
            f"weights must be {tuple(x.shape[:-1])}, none negative and some positive, got {tuple(weights.shape)} "
            f"from {float(weights.min()) if weights.numel() else 0:g}"
        )
    weight = (weights / weights.sum(-1, keepdim=True))[..., None]
    mean_x, mean_y = (weight * x).sum(-2, keepdim=True), (weight * y).sum(-2, keepdim=True)
    u, values, vt = torch.linalg.svd((y - mean_y).mT @ (weight * (x - mean_x)))
    flip = torch.ones_like(values)
    flip[..., 2] = torch.linalg.det(u @ vt)  # a reflection is no rotation
    rotation = (u * flip[..., None, :]) @ vt
    size = (weight * (x - mean_x).square()).sum((-2, -1))
    factor = (values * flip).sum(-1) / size.clamp(min=1e-12) if scale else torch.ones_like(size)
    translation = mean_y - factor[..., None, None] * mean_x @ rotation.mT
    return Similarity(factor, rotation, translation[..., 0, :])


def pnp(
    points: Float[Tensor, "*points 3"],
    pixels: Float[Tensor, "*points 2"],
    intrinsics: Float[Tensor, "3 3"],
    *,
    confident: Bool[Tensor, "*points"] | None = None,
    tolerance: float = 5.0,
    iterations: int = 10,
) -> Float[Tensor, "3 4"]:
    """The extrinsics of the camera that sees ``points`` at ``pixels``: OpenCV's RANSAC over PnP, as DUSt3R has it.

    Args:
        confident: which points count; all unless given.
        tolerance: how far (pixels) an inlier may lie from where the camera sees it.
        iterations: of RANSAC.

    Raises:
        ValueError: fewer than four confident points, shapes that disagree, or no camera that fits.
    """
    import cv2

    if points.shape[:-1] != pixels.shape[:-1] or points.shape[-1] != 3 or pixels.shape[-1] != 2:
        raise ValueError(
            f"points and pixels must be (*points, 3) and (*points, 2), got {tuple(points.shape)}, {tuple(pixels.shape)}"
        )
    known = points.isfinite().all(-1) if confident is None else confident & points.isfinite().all(-1)
    if int(known.sum()) < 4:
        raise ValueError(f"confident must leave at least 4 points, got {int(known.sum())}")
    cv2.setRNGSeed(0)
    found, turn, shift, _ = cv2.solvePnPRansac(
        _array(points[known]), _array(pixels[known]), _array(intrinsics), None,
        iterationsCount=iterations, reprojectionError=tolerance, flags=cv2.SOLVEPNP_SQPNP,
    )  # fmt: skip
    if not found:
        raise ValueError("points and pixels must fit a camera, got none from RANSAC")
    return torch.from_numpy(np.hstack([cv2.Rodrigues(turn)[0], shift])).to(points)


def pixel_grid(height: int, width: int, like: Tensor) -> Float[Tensor, "height width 2"]:
    """The (x, y) of all pixels, of the type and on the device of ``like``."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], -1).to(like)


def project(
    points: Float[Tensor, "*batch height width 3"],
    intrinsics: Float[Tensor, "*batch 3 3"],
    extrinsics: Float[Tensor, "*batch 3 4"],
) -> tuple[Float[Tensor, "*batch height width 2"], Float[Tensor, "*batch height width"]]:
    """Where cameras see points of the world (pixels), and at which depth."""
    seen = points @ extrinsics[..., None, :, :3].mT + extrinsics[..., None, None, :, 3]
    image = seen @ intrinsics[..., None, :, :].mT
    return image[..., :2] / image[..., 2:], seen[..., 2]


def relative(first: Float[Tensor, "*batch 3 4"], second: Float[Tensor, "*batch 3 4"]) -> Float[Tensor, "*batch 3 4"]:
    """The extrinsics of ``second`` if the first camera is the world."""
    rotation = second[..., :3] @ first[..., :3].mT
    return torch.cat([rotation, second[..., 3:] - rotation @ first[..., 3:]], -1)


def check_rotation(rotation: Float[Tensor, "*batch 3 3"], name: str = "rotation", tolerance: float = 1e-3) -> None:
    """Raise ``ValueError`` unless the matrices are orthogonal and of determinant one, within ``tolerance``."""
    if rotation.shape[-2:] != (3, 3):
        raise ValueError(f"{name} must be (*batch, 3, 3), got {tuple(rotation.shape)}")
    away = (rotation @ rotation.mT - torch.eye(3).to(rotation)).abs().amax() if rotation.numel() else torch.zeros(())
    if not float(away) <= tolerance or bool((torch.linalg.det(rotation) < 0).any()):
        raise ValueError(
            f"{name} must hold rotations, got a matrix that is {float(away):.3g} from orthogonal or a mirror"
        )


def pose_errors(
    found: Float[Tensor, "*batch 3 4"], truth: Float[Tensor, "*batch 3 4"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Degrees between rotations and between directions of translation, of relative poses.

    A pose that was not found (NaN) is 180 degrees wrong in both. Raises ``ValueError`` for matrices that are no rotation.
    """
    if found.shape != truth.shape or found.shape[-2:] != (3, 4):
        raise ValueError(
            f"found and truth must be (*batch, 3, 4) alike, got {tuple(found.shape)} and {tuple(truth.shape)}"
        )
    lost = found.isnan().flatten(-2).any(-1)
    check_rotation(found[..., :3][~lost], "found")
    check_rotation(truth[..., :3], "truth")
    cosine = ((found[..., :3] * truth[..., :3]).sum((-2, -1)) - 1) / 2
    turn = torch.rad2deg(cosine.clamp(-1, 1).acos())
    shift = torch.cosine_similarity(found[..., 3], truth[..., 3], dim=-1)
    direction = torch.rad2deg(shift.clamp(-1, 1).acos())
    return turn.masked_fill(lost, 180.0), direction.masked_fill(lost, 180.0)


def all_pairs(extrinsics: Float[Tensor, "*batch views 3 4"]) -> Float[Tensor, "*batch pairs 3 4"]:
    """The relative poses of all views after another, as VGGT's evaluation takes them."""
    i, j = torch.triu_indices(extrinsics.shape[-3], extrinsics.shape[-3], 1).to(extrinsics.device)
    return relative(extrinsics[..., i, :, :], extrinsics[..., j, :, :])


def pose_auc(found: Float[Tensor, "*batch 3 4"], truth: Float[Tensor, "*batch 3 4"], degrees: float = 30.0) -> float:
    """The area under the curve of recall up to ``degrees``, of the larger of both errors; one is perfect.

    Raises ``ValueError`` unless ``degrees`` is positive.
    """
    if not degrees > 0:
        raise ValueError(f"degrees must be above 0, got {degrees}")
    worse = torch.maximum(*pose_errors(found, truth))
    return float((1 - worse / degrees).clamp(min=0).mean())


def aligned_errors(found: Float[Tensor, "*points 3"], truth: Float[Tensor, "*points 3"]) -> Float[Tensor, "*points"]:
    """Distances to the true points after the median distance to the origin is made equal, as shares of that distance.

    Raises ``ValueError`` for shapes that disagree.
    """
    if found.shape != truth.shape or found.shape[-1] != 3:
        raise ValueError(f"found and truth must be (*points, 3) alike, got {tuple(found.shape)}, {tuple(truth.shape)}")
    ours, theirs = found.norm(dim=-1).median(), truth.norm(dim=-1).median()
    return (found * (theirs / ours.clamp(min=1e-8)) - truth).norm(dim=-1) / theirs


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().double().numpy()
