"""SimVP, what PredFormer is measured beside: convolutions that encode frames, translate them together, and decode.

Version 1 (arXiv 2206.05099) translates by a U-shaped stack of inception blocks, version 2 (arXiv 2211.12509) by gated
attention of large kernels.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """Convolution of 3 x 3, GroupNorm and SiLU; ``resize`` halves (-1) or doubles (1) the sides."""

    def __init__(self, inside: int, outside: int, resize: int = 0) -> None:
        if resize > 0:
            layers = [nn.Conv2d(inside, 4 * outside, 3, padding=1), nn.PixelShuffle(2)]
        else:
            layers = [nn.Conv2d(inside, outside, 3, stride=2 if resize else 1, padding=1)]
        super().__init__(*layers, nn.GroupNorm(2, outside), nn.SiLU())


class Inception(nn.Module):
    """The sum of four grouped convolutions of different reach, after one of 1 x 1 to half of ``hidden``."""

    def __init__(self, inside: int, hidden: int, outside: int, groups: int = 8) -> None:
        super().__init__()
        middle = hidden // 2
        self.reduce = nn.Conv2d(inside, middle, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(middle, outside, kernel, padding=kernel // 2, groups=groups if middle % groups == 0 else 1),
                nn.GroupNorm(groups, outside),
                nn.LeakyReLU(0.2),
            )
            for kernel in (3, 5, 7, 11)
        )

    def forward(self, x: Float[Tensor, "batch inside height width"]) -> Float[Tensor, "batch outside height width"]:
        x = self.reduce(x)
        return sum(branch(x) for branch in self.branches)  # type: ignore[return-value]


class InceptionTranslator(nn.Module):
    """As many inception blocks down as up, joined by concatenation."""

    def __init__(self, channels: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(Inception(hidden if i else channels, hidden, hidden) for i in range(depth))
        self.up = nn.ModuleList(
            Inception(2 * hidden if i else hidden, hidden, channels if i == depth - 1 else hidden) for i in range(depth)
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        for i, block in enumerate(self.up):
            x = block(torch.cat([x, skips[-1 - i]], 1) if i else x)
        return x


class GatedAttention(nn.Module):
    """Spatial attention as a gate: depth-wise 5 x 5, depth-wise 7 x 7 of dilation 3, 1 x 1 to value and gate."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.GELU())
        self.mix = nn.Sequential(
            nn.Conv2d(dim, dim, 5, padding=2, groups=dim),
            nn.Conv2d(dim, dim, 7, padding=9, dilation=3, groups=dim),
            nn.Conv2d(dim, 2 * dim, 1),
        )
        self.leave = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        value, gate = self.mix(self.enter(x)).chunk(2, dim=1)
        return x + self.leave(gate.sigmoid() * value)  # type: ignore[no-any-return]


class GatedBlock(nn.Module):
    """Gated attention and a mixing MLP, each normed, scaled and beside a skip; then 1 x 1 where the width changes."""

    def __init__(self, inside: int, outside: int, mlp_ratio: int) -> None:
        super().__init__()
        hidden = mlp_ratio * inside
        self.attention = nn.Sequential(nn.BatchNorm2d(inside), GatedAttention(inside))
        self.mlp = nn.Sequential(
            nn.BatchNorm2d(inside),
            nn.Conv2d(inside, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Conv2d(hidden, inside, 1),
        )
        self.scales = nn.Parameter(torch.full((2, inside, 1, 1), 1e-2))
        self.out = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Float[Tensor, "batch inside height width"]) -> Float[Tensor, "batch outside height width"]:
        x = x + self.scales[0] * self.attention(x)
        x = x + self.scales[1] * self.mlp(x)
        return self.out(x)  # type: ignore[no-any-return]


class SimVP(nn.Module):
    """Frames to as many later frames: (batch, frames, channels, height, width) to the same shape.

    The sizes as they come are OpenSTL's for Moving MNIST: 58.0 million parameters in version 1.

    Args:
        in_shape: (frames, channels, height, width).
        version: 1 for inception blocks, 2 for gated attention.
        hidden: width of a frame's features.
        translator, depth: width of the translator and its blocks (in version 1 as many down as up).
        scales: blocks of the encoder; every second one halves the sides.
        mlp_ratio: hidden width of version 2's MLPs / ``translator``.

    Raises:
        ValueError: sides that cannot be halved so often, widths that norms cannot group, another version.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int, int] = (10, 1, 64, 64),
        *,
        version: Literal[1, 2] = 1,
        hidden: int = 64,
        translator: int = 512,
        depth: int = 8,
        scales: int = 4,
        mlp_ratio: int = 8,
    ) -> None:
        super().__init__()
        frames, channels, height, width = in_shape
        factor = 2 ** (scales // 2)
        if height % factor or width % factor:
            raise ValueError(f"height and width must be divisible by {factor}, got {height} x {width}")
        if version not in (1, 2):
            raise ValueError(f"version must be 1 or 2, got {version}")
        if hidden % 2 or (version == 1 and (translator % 8 or frames * hidden % 8)):
            raise ValueError(
                f"hidden must be even, and in version 1 translator and frames * hidden multiples of 8, "
                f"got hidden={hidden}, translator={translator} and {frames} frames"
            )
        self.in_shape = tuple(in_shape)
        resize = [-(i % 2) for i in range(scales)]
        self.first = ConvBlock(channels, hidden, resize[0])
        self.encoder = nn.Sequential(*(ConvBlock(hidden, hidden, step) for step in resize[1:]))
        joint = frames * hidden
        if version == 1:
            self.translator: nn.Module = InceptionTranslator(joint, translator, depth)
        else:
            widths = [joint, *[translator] * (depth - 1), joint]
            self.translator = nn.Sequential(
                *(GatedBlock(inside, outside, mlp_ratio) for inside, outside in itertools.pairwise(widths))
            )
        self.decoder = nn.Sequential(*(ConvBlock(hidden, hidden, -step) for step in reversed(resize[1:])))
        self.last = ConvBlock(hidden, hidden, -resize[0])
        self.head = nn.Conv2d(hidden, channels, 1)

    def forward(
        self, video: Float[Tensor, "batch frames channels height width"]
    ) -> Float[Tensor, "batch frames channels height width"]:
        if tuple(video.shape[1:]) != self.in_shape:
            raise ValueError(f"video must be (batch, {', '.join(map(str, self.in_shape))}), got {tuple(video.shape)}")
        frames = self.in_shape[0]
        fine = self.first(video.flatten(0, 1))
        coarse = self.encoder(fine)
        coarse = self.translator(coarse.unflatten(0, (-1, frames)).flatten(1, 2))
        coarse = coarse.unflatten(1, (frames, -1)).flatten(0, 1)
        return self.head(self.last(self.decoder(coarse) + fine)).view_as(video)  # type: ignore[no-any-return]
