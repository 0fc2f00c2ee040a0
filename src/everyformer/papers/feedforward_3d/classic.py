"""The classic pipeline that feed-forward networks stand in for: match SIFT features, solve for cameras, triangulate.

Built of OpenCV's parts. It is given the true intrinsics, which the networks are not.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from everyformer.papers.feedforward_3d.geometry import pixel_grid


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be tuned: by how much images are enlarged first, SIFT's contrast threshold, Lowe's ratio, RANSAC's pixels.

    Raises ``ValueError`` for values that cannot be.
    """

    enlarge: int = 4
    contrast: float = 0.01
    ratio: float = 0.8
    tolerance: float = 1.0

    def __post_init__(self) -> None:
        if self.enlarge < 1 or not self.contrast >= 0 or not 0 < self.ratio <= 1 or not self.tolerance > 0:
            raise ValueError(
                f"enlarge must be at least 1, contrast not negative, ratio in (0, 1] and tolerance above 0, got {self}"
            )


@dataclasses.dataclass(frozen=True)
class Reconstructed:
    """Cameras, and points of the world with the view and pixel (x, y) that each was first seen at.

    The world is the first view's camera, and the first two cameras that were found are one unit apart. Cameras that
    could not be found are NaN.
    """

    extrinsics: Float[Tensor, "views 3 4"]
    points: Float[Tensor, "points 3"]
    pixels: Float[Tensor, "points 2"]
    view: Int[Tensor, " points"]


def reconstruct(
    images: Float[Tensor, "views 3 height width"],
    intrinsics: Float[Tensor, "views 3 3"],
    settings: Settings = Settings(),
) -> Reconstructed:
    """Structure from motion without bundle adjustment: a first pair by its essential matrix, then views one by one by PnP.

    The first pair is the first view's with most inliers; each further view is the one with most points known by then.

    Raises ``ValueError`` for fewer than two views, or intrinsics that are not one for each.
    """
    if images.dim() != 4 or images.shape[1] != 3 or len(images) < 2:
        raise ValueError(f"images must be (views, 3, height, width), at least two views, got {tuple(images.shape)}")
    if intrinsics.shape != (len(images), 3, 3):
        raise ValueError(f"intrinsics must be ({len(images)}, 3, 3), got {tuple(intrinsics.shape)}")
    return _Reconstruction(images, intrinsics, settings).run()


def dense(
    found: Reconstructed, view: int, intrinsics: Float[Tensor, "3 3"], height: int, width: int
) -> Float[Tensor, "height width"]:
    """A depth map from the points in front of a view: every pixel takes the nearest one's depth.

    Depth is along the view's axis, in the reconstruction's unit; one everywhere if the view has no camera or no points.
    """
    camera = found.extrinsics[view]
    seen = found.points @ camera[:, :3].T + camera[:, 3]
    seen = seen[seen[:, 2] > 1e-3]
    if not len(seen):
        return torch.ones(height, width)
    pixels = (seen @ intrinsics.T)[:, :2] / seen[:, 2:]
    grid = pixel_grid(height, width, pixels).view(-1, 2)
    return seen[torch.cdist(grid, pixels).argmin(1), 2].view(height, width)


class _Reconstruction:
    """State of a run: cameras found, and for every view which of its features is which point."""

    def __init__(self, images: Tensor, intrinsics: Tensor, settings: Settings) -> None:
        self.settings = settings
        self.intrinsics = intrinsics.detach().cpu().double().numpy()
        self.features = [_features(image, settings) for image in images]
        self.cameras: dict[int, Any] = {0: np.eye(3, 4)}
        self.known: list[dict[int, int]] = [{} for _ in images]
        self.points: list[Any] = []
        self.first: list[tuple[int, Any]] = []

    def run(self) -> Reconstructed:
        pairs = {view: self._two_views(view) for view in range(1, len(self.features))}
        solved = {view: pair for view, pair in pairs.items() if pair is not None}
        if solved:
            view = max(solved, key=lambda view: len(solved[view][1]))
            self.cameras[view] = solved[view][0]
            self._triangulate(0, view, solved[view][1])
        while True:
            ready = {view: self._seen(view) for view in range(len(self.features)) if view not in self.cameras}
            ready = {view: seen for view, seen in ready.items() if len(seen) >= 6}
            for view in sorted(ready, key=lambda view: -len(ready[view])):
                if self._add(view, ready[view]):
                    break
            else:
                break
        cameras = np.full((len(self.features), 3, 4), np.nan)
        for view, camera in self.cameras.items():
            cameras[view] = camera
        return Reconstructed(
            torch.from_numpy(cameras).float(),
            torch.from_numpy(np.array(self.points, np.float32).reshape(-1, 3)),
            torch.from_numpy(np.array([pixel for _, pixel in self.first], np.float32).reshape(-1, 2)),
            torch.tensor([view for view, _ in self.first], dtype=torch.long),
        )

    def _two_views(self, view: int) -> tuple[Any, Any] | None:
        """Pose of a view beside the first and the matches that agree with it, or nothing."""
        import cv2

        matches = self._matches(0, view)
        if len(matches) < 6:  # five settle the matrix, one has to agree
            return None
        a, b = (self._rays(v, matches[:, side]) for side, v in enumerate((0, view)))
        cv2.setRNGSeed(0)
        limit = self.settings.tolerance / self.intrinsics[0][0, 0]
        essential, agree = cv2.findEssentialMat(a, b, np.eye(3), cv2.RANSAC, 0.999, limit)
        if essential is None or essential.shape[0] < 3:
            return None
        number, rotation, shift, agree = cv2.recoverPose(essential[:3], a, b, np.eye(3), mask=agree)
        if number < 5:
            return None
        return np.hstack([rotation, shift]), matches[agree[:, 0] > 0]

    def _add(self, view: int, seen: list[tuple[int, int]]) -> bool:
        """Find a further camera from features whose points are known, then triangulate with those before it."""
        import cv2

        points = np.array([self.points[point] for _, point in seen])
        rays = self._rays(view, np.array([feature for feature, _ in seen]))
        limit = 2 * self.settings.tolerance / self.intrinsics[view][0, 0]
        cv2.setRNGSeed(0)
        found, turn, shift, agree = cv2.solvePnPRansac(
            points, rays, np.eye(3), None, reprojectionError=limit, iterationsCount=200, flags=cv2.SOLVEPNP_SQPNP
        )
        if not found or agree is None or len(agree) < 5:
            return False
        self.cameras[view] = np.hstack([cv2.Rodrigues(turn)[0], shift])
        for row in agree[:, 0]:
            self.known[view][seen[row][0]] = seen[row][1]
        for other in [v for v in self.cameras if v != view]:
            self._triangulate(other, view, self._matches(other, view))
        return True

    def _seen(self, view: int) -> list[tuple[int, int]]:
        """A view's features and the points they are, by matches with the views that have cameras."""
        seen: dict[int, int] = {}
        for other in self.cameras:
            for theirs, ours in self._matches(other, view):
                if theirs in self.known[other]:
                    seen.setdefault(int(ours), self.known[other][theirs])
        return list(seen.items())

    def _triangulate(self, i: int, j: int, matches: Any) -> None:
        """New points from matches of two views: those in front of both cameras that are seen where they should be."""
        import cv2

        fresh = [(a, b) for a, b in matches if a not in self.known[i] and b not in self.known[j]]
        if not fresh:
            return
        rays = [self._rays(v, np.array(fresh)[:, side]) for side, v in enumerate((i, j))]
        points = cv2.triangulatePoints(self.cameras[i], self.cameras[j], rays[0].T, rays[1].T)
        points = (points[:3] / np.where(np.abs(points[3:]) < 1e-12, 1e-12, points[3:])).T
        good = np.ones(len(fresh), bool)
        for view, ray in zip((i, j), rays, strict=True):
            camera = points @ self.cameras[view][:, :3].T + self.cameras[view][:, 3]
            good &= camera[:, 2] > 1e-3
            away = np.abs(camera[:, :2] / np.maximum(camera[:, 2:], 1e-3) - ray).max(1)
            good &= away < 2 * self.settings.tolerance / self.intrinsics[view][0, 0]
        for (a, b), point in ((fresh[k], points[k]) for k in np.flatnonzero(good)):
            self.known[i][a] = self.known[j][b] = len(self.points)
            self.points.append(point)
            self.first.append((i, self.features[i][0][a]))

    def _matches(self, i: int, j: int) -> Any:
        """Pairs of features (of view i, of view j) that are each other's nearest and pass Lowe's test."""
        import cv2

        (_, a), (_, b) = self.features[i], self.features[j]
        if len(a) < 2 or len(b) < 2:
            return np.zeros((0, 2), int)
        there = cv2.BFMatcher().knnMatch(a, b, k=2)
        back = {match.queryIdx: match.trainIdx for match in cv2.BFMatcher().match(b, a)}
        good = [
            (best.queryIdx, best.trainIdx)
            for best, second in there
            if best.distance < self.settings.ratio * second.distance and back[best.trainIdx] == best.queryIdx
        ]
        return np.array(good, int).reshape(-1, 2)

    def _rays(self, view: int, features: Any) -> Any:
        """Features' pixels as directions (x, y) at depth one."""
        camera = self.intrinsics[view]
        return (self.features[view][0][features] - camera[:2, 2]) / camera[[0, 1], [0, 1]]


def _features(image: Float[Tensor, "3 height width"], settings: Settings) -> tuple[Any, Any]:
    """Pixels (features, 2) and descriptors (features, 128) by SIFT."""
    import cv2

    rgb = (image.detach().cpu().clamp(0, 1).permute(1, 2, 0) * 255).round().byte().numpy()
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    large = cv2.resize(gray, None, fx=settings.enlarge, fy=settings.enlarge, interpolation=cv2.INTER_CUBIC)
    sift: Any = cv2.SIFT_create  # type: ignore[attr-defined] # missing from OpenCV's own stubs
    keys, descriptors = sift(contrastThreshold=settings.contrast).detectAndCompute(large, None)
    if descriptors is None:
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    pixels = (np.array([key.pt for key in keys], np.float64) + 0.5) / settings.enlarge - 0.5
    return pixels, descriptors
