"""Dense heads: from tokens to maps of points or depth with a confidence for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class Pointmap(NamedTuple):
    """A point in space for each pixel, and how sure the model is of it (at least 1)."""

    points: Float[Tensor, "batch height width 3"]
    confidence: Float[Tensor, "batch height width"]


def pointmap(raw: Float[Tensor, "batch 4 height width"]) -> Pointmap:
    """DUSt3R's output: a direction times exp(length) - 1, and 1 + exp for the confidence (arXiv 2312.14132)."""
    xyz = rearrange(raw[:, :3], "b c h w -> b h w c")
    length = torch.linalg.vector_norm(xyz, dim=-1, keepdim=True)
    return Pointmap(xyz / length.clamp(min=1e-8) * torch.expm1(length), confidence(raw[:, 3]))


def confidence(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """1 + exp(raw)."""
    return 1 + raw.exp()


def signed_expm1(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """sign(raw) (exp|raw| - 1): coordinates of any size from a modest output (VGGT's points)."""
    return raw.sign() * torch.expm1(raw.abs())


class LinearHead(nn.Module):
    """Each token gives the pixels of its patch."""

    def __init__(self, dim: int, *, patch: int, channels: int = 4) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(dim, channels * patch**2)

    def forward(
        self, levels: Sequence[Float[Tensor, "batch tokens dim"]], grid: tuple[int, int]
    ) -> Float[Tensor, "batch channels height width"]:
        pixels = self.proj(levels[-1])
        p = self.patch
        return rearrange(pixels, "b (h w) (c p q) -> b c (h p) (w q)", h=grid[0], p=p, q=p)


class Residual(nn.Module):
    """Two convolutions beside a skip; ``rectified``: the skip carries ReLU(x), as where ReLU works in place (VGGT)."""

    def __init__(self, features: int, *, rectified: bool) -> None:
        super().__init__()
        self.rectified = rectified
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch features h w"]) -> Float[Tensor, "batch features h w"]:
        positive = F.relu(x)
        return self.conv2(F.relu(self.conv1(positive))) + (positive if self.rectified else x)


class Fusion(nn.Module):
    """What comes from the coarser level, plus this level's features, refined and enlarged."""

    def __init__(self, features: int, *, rectified: bool, skip: bool) -> None:
        super().__init__()
        self.skip = Residual(features, rectified=rectified) if skip else None
        self.unit = Residual(features, rectified=rectified)
        self.out = nn.Conv2d(features, features, 1)

    def forward(
        self, coarse: Tensor | None, level: Float[Tensor, "batch features h w"], size: tuple[int, int]
    ) -> Float[Tensor, "batch features height width"]:
        x = level if coarse is None else coarse + self.skip(level)  # type: ignore[misc]
        # A 1 x 1 convolution and a resize whose weights sum to one commute: the small map is the cheaper one.
        return resize(self.out(self.unit(x)), size)


def resize(
    x: Float[Tensor, "batch channels h w"], size: tuple[int, int]
) -> Float[Tensor, "batch channels height width"]:
    """Bilinear, corner to corner."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


class DPT(nn.Module):
    """Four levels of tokens, fused from coarse to fine (DPT, arXiv 2103.13413), to (batch, channels, height, width).

    ``multi_view=False`` is the head of DUSt3R. ``True`` is VGGT's: tokens are normed, codes of the place in the image are
    added twice, each level is enlarged to just the size of the next, and skips carry ReLU(x).

    ``dims`` are the widths of the four levels' tokens, ``layer_dims`` the channels at 4, 2, 1 and 1/2 times the grid.
    Raises ``ValueError`` unless there are four of each, and where codes of places need channels divisible by 4.
    """

    def __init__(
        self,
        dims: Sequence[int],
        *,
        patch: int,
        channels: int = 4,
        features: int = 256,
        layer_dims: Sequence[int] = (96, 192, 384, 768),
        last: int = 128,
        multi_view: bool = False,
    ) -> None:
        super().__init__()
        if len(dims) != 4 or len(layer_dims) != 4:
            raise ValueError(f"dims and layer_dims must have four entries, got {tuple(dims)} and {tuple(layer_dims)}")
        if multi_view and any(width % 4 for width in (*layer_dims, features // 2)):
            raise ValueError(
                f"layer_dims and features / 2 must be divisible by 4, got {tuple(layer_dims)} and {features} / 2"
            )
        self.patch, self.multi_view = patch, multi_view
        self.norm: nn.Module = nn.LayerNorm(dims[0]) if multi_view else nn.Identity()
        self.project = nn.ModuleList(nn.Conv2d(dim, out, 1) for dim, out in zip(dims, layer_dims, strict=True))
        a, b, _, d = layer_dims
        self.rescale = nn.ModuleList(
            [
                nn.ConvTranspose2d(a, a, 4, stride=4),
                nn.ConvTranspose2d(b, b, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(d, d, 3, stride=2, padding=1),
            ]
        )
        self.level = nn.ModuleList(nn.Conv2d(dim, features, 3, padding=1, bias=False) for dim in layer_dims)
        self.fuse = nn.ModuleList(
            Fusion(features, rectified=multi_view, skip=index < 3 or not multi_view) for index in range(4)
        )
        if not multi_view:
            # DUSt3R's coarsest block has weights for a skip it does not get: kept for the checkpoint, never trained.
            self.fuse[3].skip.requires_grad_(False)
        self.out1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.out2 = nn.Conv2d(features // 2, last, 3, padding=1)
        self.out3 = nn.Conv2d(last, channels, 1)

    def forward(
        self, levels: Sequence[Float[Tensor, "batch tokens dim"]], grid: tuple[int, int]
    ) -> Float[Tensor, "batch channels height width"]:
        size = (grid[0] * self.patch, grid[1] * self.patch)
        maps = []
        for tokens, project, rescale, level in zip(levels, self.project, self.rescale, self.level, strict=True):
            x = project(rearrange(self.norm(tokens), "b (h w) d -> b d h w", h=grid[0]))
            maps.append(level(rescale(self._placed(x, size))))
        x = None
        for index in (3, 2, 1, 0):
            height, width = maps[index].shape[-2:]
            double = (2 * height, 2 * width)
            target = maps[index - 1].shape[-2:] if index else double
            x = self.fuse[index](x, maps[index], target if self.multi_view else double)[..., : target[0], : target[1]]
        x = self._placed(resize(self.out1(x), size), size)
        return self.out3(F.relu(self.out2(x)))

    def _placed(self, x: Float[Tensor, "batch c h w"], size: tuple[int, int]) -> Float[Tensor, "batch c h w"]:
        return x + 0.1 * place_codes(x.shape[-2], x.shape[-1], x.shape[1], size).to(x) if self.multi_view else x


def place_codes(
    height: int, width: int, channels: int, size: tuple[int, int]
) -> Float[Tensor, "channels height width"]:
    """Sines and cosines of where a cell lies in an image of ``size``, whose half diagonal is 1: column, then row."""
    diagonal = (size[0] ** 2 + size[1] ** 2) ** 0.5
    frequencies = 100.0 ** -(torch.arange(channels // 4) / (channels // 4))

    def waves(cells: int, side: int) -> Tensor:
        reach = side / diagonal * (cells - 1) / cells
        angles = frequencies[:, None] * torch.linspace(-reach, reach, cells)
        return torch.cat([angles.sin(), angles.cos()])

    columns = waves(width, size[1])[:, None, :].expand(-1, height, -1)
    rows = waves(height, size[0])[:, :, None].expand(-1, -1, width)
    return torch.cat([columns, rows])
