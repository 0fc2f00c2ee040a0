"""The focal length that explains a pointmap (DUSt3R, arXiv 2312.14132, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.papers.feedforward_3d.geometry import pixel_grid

REWEIGHTINGS = 10


def focal_from_pointmap(
    points: Float[Tensor, "batch height width 3"],
    principal: Float[Tensor, "batch 2"] | None = None,
    *,
    method: Literal["weiszfeld", "median"] = "weiszfeld",
) -> Float[Tensor, "batch"]:
    """Focal length in pixels, the same in x and y, of points in the frame of their own camera.

    Args:
        points: (batch, height, width, 3), z forward; all of them count.
        principal: column and row of the principal point in pixels; the centre if left out.
        method: "weiszfeld" minimises the sum of distances in the image, "median" takes the middle of all pixels' votes.

    Raises:
        ValueError: shapes that do not fit, an unknown method.
    """
    if points.ndim != 4 or points.shape[-1] != 3:
        raise ValueError(f"points must be (batch, height, width, 3), got {tuple(points.shape)}")
    if method not in ("weiszfeld", "median"):
        raise ValueError(f'method must be "weiszfeld" or "median", got {method!r}')
    batch, height, width, _ = points.shape
    if principal is None:
        principal = points.new_tensor([width / 2, height / 2]).expand(batch, 2)
    if principal.shape != (batch, 2):
        raise ValueError(f"principal must be (batch, 2) = ({batch}, 2), got {tuple(principal.shape)}")
    pixels = pixel_grid(height, width, points).flatten(0, 1) - principal[:, None]
    points = points.flatten(1, 2)
    if method == "median":
        votes = pixels * points[..., 2:] / points[..., :2]
        return votes.mT.flatten(1).nanmedian(dim=1).values
    rays = (points[..., :2] / points[..., 2:]).nan_to_num(posinf=0, neginf=0)
    cross, square = (rays * pixels).sum(-1), rays.square().sum(-1)
    weights = torch.ones_like(cross)
    for _ in range(1 + REWEIGHTINGS):  # least squares first, then with weights 1 / distance
        focal = (weights * cross).mean(1) / (weights * square).mean(1)
        weights = torch.linalg.vector_norm(pixels - focal[:, None, None] * rays, dim=-1).clamp(min=1e-8).reciprocal()
    return focal
