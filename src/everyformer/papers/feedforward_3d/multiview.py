"""VGGT: all views at once to points, depth and cameras (arXiv 2503.11651, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.feedforward_3d.blocks import (
    Block,
    Dino,
    Patches,
    grid_positions,
    initialise,
    patch_grid,
    rotary_table,
    rotary_width,
    run,
)
from everyformer.papers.feedforward_3d.cameras import CameraHead, pose_decode
from everyformer.papers.feedforward_3d.heads import DPT, confidence, signed_expm1

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours


def channels(values: Sequence[float]) -> Float[Tensor, "3 1 1"]:
    """One number per channel of an image."""
    return torch.tensor(values)[:, None, None]


class Reconstruction(NamedTuple):
    """What a forward pass finds; the world is the frame of the first view, scale is free."""

    points: Float[Tensor, "batch views height width 3"]
    points_confidence: Float[Tensor, "batch views height width"]
    depth: Float[Tensor, "batch views height width"]
    depth_confidence: Float[Tensor, "batch views height width"]
    pose_codes: Float[Tensor, "refinements batch views 9"]
    extrinsics: Float[Tensor, "batch views 3 4"]
    intrinsics: Float[Tensor, "batch views 3 3"]


class MultiViewModel(nn.Module):
    """Attention inside a view in turn with attention over all views; the defaults are VGGT-1B.

    Takes images (batch, views, 3, height, width) in [0, 1], any number of views and any sides that ``patch`` divides.
    ``encoder_depth`` blocks of DINOv2 make the patch tokens (0: one convolution), trained at ``image_size``; ``depth`` pairs
    of blocks follow. The dense heads read the pairs named by ``layers``, ``head_views`` views at a time (``None``: all),
    which bounds memory; ``checkpointing`` trades time for memory in training.

    Raises ``ValueError`` for sizes that do not divide one another and for images that do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        image_size: int = 518,
        patch: int = 14,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        registers: int = 4,
        encoder_depth: int = 24,
        encoder_registers: int = 4,
        qk_norm: bool = True,
        layer_scale: float = 0.01,
        camera_depth: int = 4,
        camera_heads: int = 16,
        features: int = 256,
        layer_dims: Sequence[int] = (256, 512, 1024, 1024),
        last: int = 32,
        layers: Sequence[int] = (4, 11, 17, 23),
        rope_base: float = 100.0,
        head_views: int | None = 8,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(f"image_size must be divisible by patch, got image_size={image_size} and patch={patch}")
        if len(layers) != 4 or not all(0 <= layer < depth for layer in layers):
            raise ValueError(f"layers must be four numbers in [0, depth={depth}), got {tuple(layers)}")
        if head_views is not None and head_views < 1:
            raise ValueError(f"head_views must be at least 1 or None, got {head_views}")
        self.patch, self.layers, self.head_views = patch, tuple(layers), head_views
        self.rope_base, self.checkpointing = rope_base, checkpointing
        self.head_dim = rotary_width(dim, heads)
        self.encoder: nn.Module = (
            Dino(
                image_size=image_size, patch=patch, dim=dim, depth=encoder_depth, heads=heads,
                registers=encoder_registers, checkpointing=checkpointing,
            )
            if encoder_depth
            else Patches(dim, patch)
        )  # fmt: skip
        # Two sets: for the first view, whose frame is the world, and for all others.
        self.camera_token = nn.Parameter(torch.empty(1, 2, 1, dim))
        self.register_tokens = nn.Parameter(torch.empty(1, 2, registers, dim))

        def block() -> Block:
            return Block(dim, heads=heads, eps=1e-5, qk_norm=qk_norm, layer_scale=layer_scale)

        self.frame = nn.ModuleList(block() for _ in range(depth))
        self.all_views = nn.ModuleList(block() for _ in range(depth))
        self.camera = CameraHead(2 * dim, depth=camera_depth, heads=camera_heads)

        def dense(channels: int) -> DPT:
            return DPT(
                [2 * dim] * 4, patch=patch, channels=channels, features=features, layer_dims=layer_dims, last=last,
                multi_view=True,
            )  # fmt: skip

        self.point, self.depth = dense(4), dense(2)
        self.register_buffer("mean", channels(MEAN), persistent=False)
        self.register_buffer("std", channels(STD), persistent=False)
        self.track_head: dict[str, Tensor] = {}
        """Weights of the head for tracks, as a checkpoint had them: not used, written back."""
        initialise(self)
        nn.init.normal_(self.camera_token, std=1e-6)
        nn.init.normal_(self.register_tokens, std=1e-6)

    def forward(self, images: Float[Tensor, "batch views 3 height width"]) -> Reconstruction:
        if not isinstance(images, Tensor):
            raise TypeError(
                f"images must be one tensor, got {type(images).__name__}: crop or resize views of different sizes to one"
            )
        if images.ndim != 5 or images.shape[2] != 3 or not images.shape[1]:
            raise ValueError(f"images must be (batch, views, 3, height, width), got {tuple(images.shape)}")
        size = (images.shape[-2], images.shape[-1])
        grid = patch_grid(*size, self.patch)
        levels = self.mix(images)
        with torch.autocast(images.device.type, enabled=False):
            dtype = self.camera_token.dtype
            levels = {layer: tokens.to(dtype) for layer, tokens in levels.items()}
            codes = self.camera(levels[len(self.frame) - 1][:, :, 0])
            first = 1 + self.register_tokens.shape[2]
            patches = [levels[layer][:, :, first:] for layer in self.layers]
            points = self._dense(self.point, patches, grid)
            depth = self._dense(self.depth, patches, grid)
            extrinsics, intrinsics = pose_decode(codes[-1], size)
        return Reconstruction(
            signed_expm1(rearrange(points[:, :, :3], "b s c h w -> b s h w c")),
            confidence(points[:, :, 3]),
            depth[:, :, 0].exp(),
            confidence(depth[:, :, 1]),
            codes,
            extrinsics,
            intrinsics,
        )

    def mix(
        self, images: Float[Tensor, "batch views 3 height width"]
    ) -> dict[int, Float[Tensor, "batch views tokens twice_dim"]]:
        """Tokens after the pairs of blocks that heads read (the last is one): view's beside all views' output.

        A camera token comes first, then registers, then patches row by row.
        """
        batch, views = images.shape[:2]
        grid = patch_grid(images.shape[-2], images.shape[-1], self.patch)
        images = ((images - self.mean) / self.std).flatten(0, 1)
        patches = self.encoder(images)
        special = torch.cat([self.camera_token, self.register_tokens], dim=2)[0]
        special = torch.cat([special[:1], special[1:].expand(views - 1, -1, -1)]).to(patches.dtype)
        x = torch.cat([special.repeat(batch, 1, 1), patches], dim=1)
        positions = grid_positions(*grid, extra=special.shape[1]).to(x.device)
        near = rotary_table(positions, self.head_dim, base=self.rope_base)
        far = (near[0].repeat(views, 1, 1), near[1].repeat(views, 1, 1))

        levels = {}
        for layer, (frame, all_views) in enumerate(zip(self.frame, self.all_views, strict=True)):
            own = run(frame, x, near, checkpointing=self.checkpointing)
            joint = rearrange(own, "(b s) n d -> b (s n) d", b=batch)
            x = run(all_views, joint, far, checkpointing=self.checkpointing).view_as(own)
            if layer in self.layers or layer == len(self.frame) - 1:
                levels[layer] = torch.cat([own, x], dim=-1).unflatten(0, (batch, views))
        return levels

    def _dense(
        self,
        head: Callable[..., Tensor],
        levels: Sequence[Float[Tensor, "batch views tokens dim"]],
        grid: tuple[int, int],
    ) -> Float[Tensor, "batch views channels height width"]:
        batch = levels[0].shape[0]
        flat = [level.flatten(0, 1) for level in levels]
        step = self.head_views or len(flat[0])
        parts = [head([level[i : i + step] for level in flat], grid) for i in range(0, len(flat[0]), step)]
        return torch.cat(parts).unflatten(0, (batch, -1))
