"""Cameras as nine numbers: translation, quaternion, two fields of view; and the head that finds them (VGGT)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.feedforward_3d.blocks import Block, Mlp

NARROWEST, WIDEST = 0.01, 3.1  # fields of view, radians, kept between these: 0 would mean an infinite focal length


def quaternion(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternions x, y, z, w with w not negative."""
    m = rotations.flatten(-2).unbind(-1)
    # Four times the outer product of the quaternion with itself; its best scaled row is the quaternion.
    xx, yy, zz = 1 + m[0] - m[4] - m[8], 1 - m[0] + m[4] - m[8], 1 - m[0] - m[4] + m[8]
    ww = 1 + m[0] + m[4] + m[8]
    xy, xz, yz = m[3] + m[1], m[2] + m[6], m[7] + m[5]
    xw, yw, zw = m[7] - m[5], m[2] - m[6], m[3] - m[1]
    outer = torch.stack([xx, xy, xz, xw, xy, yy, yz, yw, xz, yz, zz, zw, xw, yw, zw, ww], -1).unflatten(-1, (4, 4))
    best = torch.stack([xx, yy, zz, ww], -1).argmax(-1)[..., None, None].expand(*xx.shape, 1, 4)
    found = F.normalize(outer.gather(-2, best).squeeze(-2), dim=-1)
    return torch.where(found[..., 3:] < 0, -found, found)


def rotation(quaternions: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotations of quaternions x, y, z, w of any length; zero, which turns nothing, is the identity."""
    x, y, z, w = quaternions.unbind(-1)
    double = 2 / quaternions.square().sum(-1).clamp(min=1e-12)
    rows = (
        (1 - double * (y * y + z * z), double * (x * y - z * w), double * (x * z + y * w)),
        (double * (x * y + z * w), 1 - double * (x * x + z * z), double * (y * z - x * w)),
        (double * (x * z - y * w), double * (y * z + x * w), 1 - double * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def pose_encode(
    extrinsics: Float[Tensor, "*batch 3 4"], intrinsics: Float[Tensor, "*batch 3 3"], size: tuple[int, int]
) -> Float[Tensor, "*batch 9"]:
    """Translation (3), quaternion x, y, z, w (4), vertical and horizontal field of view (radians) of cameras.

    Args:
        extrinsics: world to camera; intrinsics: in pixels, principal points are taken to be at the centre.
        size: height and width of the images.

    Raises:
        ValueError: shapes that do not fit, a left part that is no rotation, a focal length that is not positive.
    """
    if extrinsics.shape[-2:] != (3, 4) or intrinsics.shape != (*extrinsics.shape[:-2], 3, 3):
        raise ValueError(
            f"extrinsics must be (..., 3, 4) and intrinsics (..., 3, 3), got {tuple(extrinsics.shape)} and "
            f"{tuple(intrinsics.shape)}"
        )
    turn = extrinsics[..., :3].float()
    error = (turn @ turn.mT - torch.eye(3, device=turn.device)).abs().amax() if turn.numel() else turn.sum()
    if not bool(error < 1e-2) or not bool((torch.linalg.det(turn) > 0).all()):
        raise ValueError(f"extrinsics[..., :3] must be rotations, got one off by {float(error):.3g} or mirrored")
    focals = torch.stack([intrinsics[..., 1, 1], intrinsics[..., 0, 0]], -1)
    if not bool((focals > 0).all()):
        raise ValueError(f"intrinsics must have positive focal lengths, got {float(focals.min()):.3g}")
    fields = 2 * torch.atan(torch.tensor(size, device=focals.device) / 2 / focals)
    return torch.cat([extrinsics[..., 3], quaternion(extrinsics[..., :3]), fields], -1)


def pose_decode(
    codes: Float[Tensor, "*batch 9"], size: tuple[int, int]
) -> tuple[Float[Tensor, "*batch 3 4"], Float[Tensor, "*batch 3 3"]]:
    """Extrinsics (world to camera) and intrinsics of pose codes, for images of ``size`` (height, width).

    Fields of view are kept between 0.01 and 3.1 radians, quaternions need not have length 1. Raises ``ValueError`` unless
    codes have nine entries.
    """
    if codes.shape[-1] != 9:
        raise ValueError(f"codes must be (..., 9), got {tuple(codes.shape)}")
    extrinsics = torch.cat([rotation(codes[..., 3:7]), codes[..., :3, None]], -1)
    tangents = torch.tan(codes[..., 7:].clamp(NARROWEST, WIDEST) / 2)
    fx, fy = size[1] / 2 / tangents[..., 1], size[0] / 2 / tangents[..., 0]
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    entries = [fx, zero, one * (size[1] / 2), zero, fy, one * (size[0] / 2), zero, zero, one]
    return extrinsics, torch.stack(entries, -1).unflatten(-1, (3, 3))


def unproject(
    depth: Float[Tensor, "*batch height width"],
    extrinsics: Float[Tensor, "*batch 3 4"],
    intrinsics: Float[Tensor, "*batch 3 3"],
) -> Float[Tensor, "*batch height width 3"]:
    """Points in the world of depth maps (along the optical axis). Raises ``ValueError`` for shapes that do not fit."""
    if extrinsics.shape != (*depth.shape[:-2], 3, 4) or intrinsics.shape != (*depth.shape[:-2], 3, 3):
        raise ValueError(
            f"extrinsics must be (..., 3, 4) and intrinsics (..., 3, 3) beside depth (..., height, width), got "
            f"{tuple(extrinsics.shape)}, {tuple(intrinsics.shape)} and {tuple(depth.shape)}"
        )
    height, width = depth.shape[-2:]
    rows = torch.arange(height, device=depth.device, dtype=depth.dtype)[:, None]
    columns = torch.arange(width, device=depth.device, dtype=depth.dtype)
    k = intrinsics[..., None, None]
    x = (columns - k[..., 0, 2, :, :]) / k[..., 0, 0, :, :] * depth
    y = (rows - k[..., 1, 2, :, :]) / k[..., 1, 1, :, :] * depth
    inside = torch.stack([x, y, depth], -1).flatten(-3, -2)
    # Rows of R^T (p - t): the inverse of the rigid motion.
    world = (inside - extrinsics[..., None, :, 3]) @ extrinsics[..., :3]
    return world.unflatten(-2, (height, width))


class CameraHead(nn.Module):
    """Refines a pose code for each view from its camera token; views look at one another (VGGT, arXiv 2503.11651).

    Takes (batch, views, dim), gives the codes of all refinements (refinements, batch, views, 9). Weights are shared by
    the refinements, gradients do not flow from one to the previous.
    """

    def __init__(self, dim: int, *, depth: int = 4, heads: int = 16, refinements: int = 4) -> None:
        super().__init__()
        self.refinements = refinements
        self.token_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(Block(dim, heads=heads, eps=1e-5, layer_scale=0.01) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.start = nn.Parameter(torch.zeros(1, 1, 9))
        self.embed = nn.Linear(9, dim)
        self.adaptive = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.out = Mlp(dim, dim // 2, 9)

    def forward(self, tokens: Float[Tensor, "batch views dim"]) -> Float[Tensor, "refinements batch views 9"]:
        tokens = self.token_norm(tokens)
        plain = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        code, codes = self.start.expand(*tokens.shape[:2], -1), []
        for number in range(self.refinements):
            shift, scale, gate = self.adaptive(self.embed(code.detach() if number else code)).chunk(3, -1)
            x = gate * (plain * (1 + scale) + shift) + tokens
            for block in self.blocks:
                x = block(x)
            step = self.out(self.norm(x))
            code = step + code.detach() if number else step
            codes.append(torch.cat([code[..., :7], F.relu(code[..., 7:])], -1))
        return torch.stack(codes)
