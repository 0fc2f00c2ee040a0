"""Clouds of points for others: PLY files, and pictures from any side."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from everyformer.files import write_atomic


def write_ply(
    path: str | Path,
    points: Float[Tensor, "*points 3"],
    colours: Float[Tensor, "*points 3"] | None = None,
    *,
    keep: Bool[Tensor, "*points"] | None = None,
) -> Path:
    """Write a cloud as a binary PLY file, which MeshLab, CloudCompare and Blender open, and return its path.

    Args:
        colours: RGB in [0, 1]; white unless given.
        keep: which points to write, such as ``confidence > 3``; all unless given. Points that are not finite are left out.

    Raises:
        ValueError: shapes that disagree, or no point that is left.
    """
    colours = torch.ones_like(points) if colours is None else colours
    _check(points, colours)
    if keep is not None and keep.shape != points.shape[:-1]:
        raise ValueError(f"keep must be {tuple(points.shape[:-1])}, got {tuple(keep.shape)}")
    kept = points.isfinite().all(-1) if keep is None else keep & points.isfinite().all(-1)
    if not bool(kept.any()):
        raise ValueError(f"points must hold at least one that is finite and kept, got none of {kept.numel()}")
    place, colour = points[kept].detach().cpu().float().numpy(), colours[kept].detach().cpu().float().numpy()
    rows = np.empty(len(place), dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
    rows["xyz"], rows["rgb"] = place, np.round(np.clip(colour, 0, 1) * 255)
    fields = [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {name}" for name in ("red", "green", "blue")
    ]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}", *fields, "end_header", ""]
    return write_atomic(Path(path), "\n".join(header).encode("ascii") + rows.tobytes())


def picture(
    points: Float[Tensor, "*points 3"],
    colours: Float[Tensor, "*points 3"],
    *,
    degrees: float = 0.0,
    size: int = 256,
) -> Float[Tensor, "3 size size"]:
    """A cloud in front of a camera, seen from ``degrees`` to its left and a little above; white where nothing is.

    The cloud is in the camera's axes; the eye turns about its middle. Nearer points hide others.

    Raises ``ValueError`` for shapes that disagree or a size below one.
    """
    _check(points, colours)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    known = points.isfinite().all(-1)
    cloud, colour = points[known].detach().float(), colours[known].detach().float()
    image = torch.ones(3, size * size)
    if not len(cloud):
        return image.view(3, size, size)
    middle = cloud.median(0).values
    angle, above = math.radians(degrees), math.radians(15.0)
    turn = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    tilt = torch.tensor([[1, 0, 0], [0, math.cos(above), -math.sin(above)], [0, math.sin(above), math.cos(above)]])
    distance = (cloud - middle).norm(dim=-1)
    extent = distance.kthvalue(max(1, round(0.9 * len(cloud)))).values  # strays do not make the rest small
    seen = (cloud - middle) @ (tilt @ turn).T / extent.clamp(min=1e-8)
    depth = seen[:, 2] + 3.0
    pixel = (seen[:, :2] / depth[:, None].clamp(min=0.1) * 1.1 * size + size / 2).floor().long()
    inside = ((pixel >= 0) & (pixel < size)).all(-1) & (depth > 0.1)
    at, depth, colour = (pixel[:, 1] * size + pixel[:, 0])[inside], depth[inside], colour[inside]
    nearest = torch.full((size * size,), math.inf).scatter_reduce(0, at, depth, "amin")
    front = depth <= nearest[at] * 1.02  # a surface's points, and not those behind it
    count = torch.zeros(size * size).index_add(0, at[front], torch.ones(int(front.sum())))
    total = torch.zeros(size * size, 3).index_add(0, at[front], colour[front])
    return torch.where(count > 0, total.T / count.clamp(min=1), image).view(3, size, size)


def _check(points: Tensor, colours: Tensor) -> None:
    if points.shape != colours.shape or points.shape[-1:] != (3,):
        raise ValueError(
            f"points and colours must be (*points, 3) alike, got {tuple(points.shape)} and {tuple(colours.shape)}"
        )
