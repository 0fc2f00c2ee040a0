"""Blocks of both families: attention with rotary positions in two dimensions, and the encoder DINOv2."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Table = tuple[Tensor, Tensor]
"""Cosines and sines of a grid's angles, each (tokens, 2, head_dim / 4)."""


def grid_positions(height: int, width: int, *, extra: int = 0) -> Float[Tensor, "tokens 2"]:
    """Row and column of each patch, row by row; ``extra`` tokens at (0, 0) come first and let patches start at (1, 1)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=-1).float()
    return torch.cat([torch.zeros(extra, 2), places + 1]) if extra else places


def rotary_width(dim: int, heads: int) -> int:
    """The width of a head that turns. Raises ``ValueError`` for heads that do not divide ``dim`` or are not fours."""
    if dim % (4 * heads):
        raise ValueError(f"dim must be divisible by 4 x heads for rotary positions, got dim={dim} and heads={heads}")
    return dim // heads


def rotary_table(positions: Float[Tensor, "tokens 2"], head_dim: int, *, base: float = 100.0) -> Table:
    """The angles of rotary positions in two dimensions: half of a head turns with the row, half with the column.

    Source: the code of CroCo v2 (arXiv 2211.10408).
    """
    exponents = torch.arange(head_dim // 4, device=positions.device) / (head_dim // 4)
    angles = positions[..., None] * base**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "*batch tokens head_dim"], table: Table) -> Float[Tensor, "*batch tokens head_dim"]:
    """Turn queries or keys by their positions; within a half of the head, component j is paired with j + head_dim / 4."""
    cos, sin = (angle.to(x.dtype) for angle in table)
    first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-2).flatten(-3)


class SelfAttention(nn.Module):
    """Attention of tokens to one another, with optional layer norms of queries and keys.

    Raises ``ValueError`` if ``heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, *, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be divisible by heads, got dim={dim} and heads={heads}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm: nn.Module = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"], table: Table | None) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Attention of one view's tokens to the other view's."""

    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        other: Float[Tensor, "batch others dim"],
        table: Table,
        other_table: Table,
    ) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = (
            rearrange(tokens, "b n (h d) -> b h n d", h=self.heads)
            for tokens in (self.query(x), self.key(other), self.value(other))
        )
        mixed = F.scaled_dot_product_attention(rotate(q, table), rotate(k, other_table), v)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))


class Patches(nn.Conv2d):
    """Each patch of an image becomes a token, row by row."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__(3, dim, patch, stride=patch)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens dim"]:
        return super().forward(images).flatten(2).mT


class Scale(nn.Module):
    """A learned factor per channel (layer scale, arXiv 2103.17239)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return x * self.gamma


class Mlp(nn.Sequential):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out))


class Block(nn.Module):
    """A pre-norm block of attention and MLP; ``layer_scale`` is the start of the factor on each branch, if there is one."""

    def __init__(
        self, dim: int, *, heads: int, eps: float = 1e-6, qk_norm: bool = False, layer_scale: float | None = None
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attention = SelfAttention(dim, heads=heads, qk_norm=qk_norm)
        self.mlp = Mlp(dim, 4 * dim, dim)
        self.scale1: nn.Module = nn.Identity() if layer_scale is None else Scale(dim, layer_scale)
        self.scale2: nn.Module = nn.Identity() if layer_scale is None else Scale(dim, layer_scale)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], table: Table | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.scale1(self.attention(self.norm1(x), table))
        return x + self.scale2(self.mlp(self.norm2(x)))


class PairBlock(nn.Module):
    """A decoder block of DUSt3R: attention within the view, attention to the other view, MLP."""

    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.norm_other = (nn.LayerNorm(dim, eps=1e-6) for _ in range(4))
        self.attention = SelfAttention(dim, heads=heads)
        self.cross = CrossAttention(dim, heads=heads)
        self.mlp = Mlp(dim, 4 * dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        other: Float[Tensor, "batch others dim"],
        table: Table,
        other_table: Table,
    ) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.attention(self.norm1(x), table)
        x = x + self.cross(self.norm2(x), self.norm_other(other), table, other_table)
        return x + self.mlp(self.norm3(x))


class Dino(nn.Module):
    """DINOv2 with registers: patches (batch, 3, height, width) to normed patch tokens (arXiv 2304.07193, 2309.16588).

    Learned positions of a square grid are resized to the image's. Images are normalised already.
    """

    def __init__(
        self, *, image_size: int = 518, patch: int = 14, dim: int = 1024, depth: int = 24, heads: int = 16,
        registers: int = 4, checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.checkpointing = checkpointing
        self.patch = patch
        self.patches = Patches(dim, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, dim))
        # Of the pre-training by masking: kept so that checkpoints go round, without a use here.
        self.register_buffer("mask_token", torch.zeros(1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads=heads, layer_scale=1.0) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.normal_(self.class_token, std=1e-6)
        nn.init.normal_(self.register_tokens, std=1e-6)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens dim"]:
        grid = patch_grid(images.shape[-2], images.shape[-1], self.patch)
        x = self.patches(images) + self._positions_of(*grid)
        first = (self.class_token + self.positions[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([first, self.register_tokens.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = run(block, x, checkpointing=self.checkpointing)
        return self.norm(x[:, 1 + self.register_tokens.shape[1] :])

    def _positions_of(self, height: int, width: int) -> Float[Tensor, "1 tokens dim"]:
        grid = self.positions[:, 1:]
        side = math.isqrt(grid.shape[1])
        if (height, width) == (side, side):
            return grid
        grid = rearrange(grid, "1 (h w) d -> 1 d h w", h=side)
        resized = F.interpolate(grid.float(), (height, width), mode="bicubic", antialias=True).to(grid.dtype)
        return rearrange(resized, "1 d h w -> 1 (h w) d")


def run(block: nn.Module, *inputs: Any, checkpointing: bool) -> Tensor:
    """A block's output; with ``checkpointing`` its activations are computed again in the backward pass, not kept."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
    return block(*inputs)  # type: ignore[no-any-return]


def patch_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of patches. Raises ``ValueError`` unless the patch divides both sides."""
    if not height or not width or height % patch or width % patch:
        raise ValueError(
            f"images must have sides divisible by patch={patch}, got {height} x {width}: resize or pad them to "
            f"{math.ceil(height / patch) * patch or patch} x {math.ceil(width / patch) * patch or patch}"
        )
    return height // patch, width // patch


def initialise(model: nn.Module) -> None:
    """Xavier for every linear layer, zero for its bias (as CroCo)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
