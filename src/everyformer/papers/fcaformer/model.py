"""FcaFormer: blocks attend to tokens that earlier blocks of their stage hand on (arXiv 2211.07198, section 3).

A stage of plain attention blocks sees only the tokens of the block before. Here every block also merges its tokens into
a few *cross tokens* (a depthwise convolution of long stride), and all later blocks of the stage attend to them beside
their own tokens. The hybrid models begin with two ConvNeXt stages; the plain one (L0) is a single stage at stride 16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

MERGE = 4  # stride of the merging convolution: one cross token for 4 x 4 tokens
Grid = tuple[int, int]


def merged(grid: Grid) -> int:
    """Cross tokens that one block makes of a grid of tokens."""
    return math.ceil(grid[0] / MERGE) * math.ceil(grid[1] / MERGE)


class ForwardCrossAttention(nn.Module):
    """Attention of a grid's tokens to themselves and to cross tokens of earlier blocks (arXiv 2211.07198, section 3.2).

    softmax([Q K_own^T / sqrt(d) + B_own, Q K_cross^T / sqrt(d) + B_cross]) [V_own; V_cross]; queries come from the own
    tokens only, so as many tokens leave as came in. B_own depends on the distance of two tokens in rows and columns,
    B_cross on the cross token. Cross tokens are first calibrated by a learnable scale each, then normalised.

    Args:
        dim: width of a token, a multiple of ``heads``.
        heads: attention heads.
        grid: rows and columns of the own tokens.
        cross: number of cross tokens, 0 for plain attention.
    """

    distance: Tensor

    def __init__(self, dim: int, heads: int, grid: Grid, cross: int = 0) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}")
        if min(grid) < 1 or cross < 0:
            raise ValueError(f"grid must be at least (1, 1) and cross at least 0, got {grid} and {cross}")
        self.dim = dim
        self.heads = heads
        self.grid = grid
        self.cross = cross
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(heads, grid[0] * grid[1]))
        if cross:
            self.cross_scale = nn.Parameter(torch.ones(cross))
            self.cross_norm = nn.LayerNorm(dim)
            self.cross_bias = nn.Parameter(torch.zeros(heads, cross))
        row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        row, column = row.flatten(), column.flatten()
        distance = (row[:, None] - row).abs() * grid[1] + (column[:, None] - column).abs()
        self.register_buffer("distance", distance, persistent=False)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], cross: Float[Tensor, "batch cross dim"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Own tokens (already normalised) and cross tokens (as merged) to tokens.

        Raises:
            ValueError: another number of own or of cross tokens than the module was built for.
        """
        given = 0 if cross is None else cross.shape[1]
        if x.shape[1] != self.grid[0] * self.grid[1] or given != self.cross:
            raise ValueError(
                f"x and cross must hold {self.grid[0] * self.grid[1]} and {self.cross} tokens, "
                f"got {x.shape[1]} and {given}"
            )
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        bias = self.bias[:, self.distance]
        if cross is not None:
            cross = self.cross_norm(cross * self.cross_scale[:, None])
            # Cross tokens ask nothing: only their keys and values are computed.
            kept = F.linear(cross, self.qkv.weight[self.dim :], self.qkv.bias[self.dim :])
            key, value = (torch.cat(pair, dim=1) for pair in zip((key, value), kept.chunk(2, dim=-1), strict=True))
            bias = torch.cat([bias, self.cross_bias[:, None].expand(-1, x.shape[1], -1)], dim=-1)
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.proj(mixed.transpose(1, 2).flatten(2))


class ConvNorm(nn.Sequential):
    """A convolution without bias and a batch norm."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outside)
        )


class FcaBlock(nn.Module):
    """Cross attention, token merging and enhancement, feed-forward (arXiv 2211.07198, figure 2).

    Args:
        dim, heads, grid, cross: as in :class:`ForwardCrossAttention`.
        merge: whether to make cross tokens for later blocks.
        mlp_ratio: hidden width of the feed-forward part over ``dim``.
        drop_path: chance of dropping a branch in training.
        layer_scale: start of the learnable scale on both branches.

    Attributes:
        linked: whether it hands tokens on or takes some in, so that no block of its stage can be left out.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        grid: Grid,
        cross: int = 0,
        merge: bool = True,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale: float = 1e-6,
    ) -> None:
        super().__init__()
        self.linked = merge or cross > 0
        self.norm1 = nn.LayerNorm(dim)
        self.attention = ForwardCrossAttention(dim, heads, grid, cross)
        self.gamma1 = nn.Parameter(layer_scale * torch.ones(dim))
        self.merge = nn.Conv2d(dim, dim, 7, MERGE, 3, groups=dim, bias=False) if merge else None
        self.enhance = ConvNorm(dim, dim, 3, groups=dim)
        # The published network normalises twice in a row before the feed-forward part.
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )
        self.gamma2 = nn.Parameter(layer_scale * torch.ones(dim))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch dim height width"], cross: Float[Tensor, "batch cross dim"] | None = None
    ) -> tuple[Float[Tensor, "batch dim height width"], Float[Tensor, "batch merged dim"] | None]:
        """A map and the cross tokens of earlier blocks to a map and the cross tokens made here."""
        size = x.shape[-2:]
        x = _tokens(x)
        x = x + self.drop_path(self.gamma1 * self.attention(self.norm1(x), cross))
        x = _map(x, size)
        made = None if self.merge is None else _tokens(self.merge(x))
        x = _tokens(self.enhance(x))
        x = x + self.drop_path(self.gamma2 * self.mlp(x))
        return _map(x, size), made


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7 convolution and feed-forward on each pixel (arXiv 2201.03545), as in the first hybrid stages."""

    def __init__(self, dim: int, drop_path: float = 0.0, layer_scale: float = 1e-6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )
        self.gamma = nn.Parameter(layer_scale * torch.ones(dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """A map to a map."""
        branch = self.gamma * self.mlp(self.conv(x).permute(0, 2, 3, 1))
        return x + self.drop_path(branch.permute(0, 3, 1, 2))


class Downsample(nn.Sequential):
    """Half the resolution: pointwise, depthwise of stride 2, pointwise."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(
            ConvNorm(inside, outside, 1),
            nn.GELU(),
            ConvNorm(outside, outside, 3, stride=2, groups=outside),
            nn.GELU(),
            ConvNorm(outside, outside, 1),
        )


class ConvStage(nn.Module):
    """ConvNeXt blocks, after a :class:`Downsample` where ``inside`` is given."""

    def __init__(self, inside: int | None, dim: int, drop_paths: Sequence[float], layer_scale: float) -> None:
        super().__init__()
        self.downsample = nn.Identity() if inside is None else Downsample(inside, dim)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(dim, rate, layer_scale) for rate in drop_paths))

    def forward(self, x: Float[Tensor, "batch inside height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """A map to a map."""
        return self.blocks(self.downsample(x))


class FcaStage(nn.Module):
    """Blocks that hand cross tokens on, within windows of ``grid`` (arXiv 2211.07198, section 3.1).

    A map of just that size is one window. Any other is padded and cut into windows, on its upper left before even blocks
    and on its lower right before odd ones, so that the windows' borders move; this is how the authors run their
    ImageNet weights on larger pictures.

    Args:
        inside: width of the input, to be downsampled first; ``None`` for no downsampling.
        dim, heads, grid, mlp_ratio, layer_scale: as in :class:`FcaBlock`.
        drop_paths: one rate per block; their number is the depth.
        memory: from how many of the blocks just before a block takes cross tokens; 0 switches them off.
    """

    def __init__(
        self,
        inside: int | None,
        dim: int,
        heads: int,
        grid: Grid,
        drop_paths: Sequence[float],
        mlp_ratio: float,
        layer_scale: float,
        memory: int,
    ) -> None:
        super().__init__()
        self.downsample = nn.Identity() if inside is None else Downsample(inside, dim)
        self.grid = grid
        self.memory = memory
        self.blocks = nn.ModuleList(
            FcaBlock(
                dim,
                heads,
                grid,
                cross=min(index, memory) * merged(grid),
                merge=memory > 0 and index + 1 < len(drop_paths),
                mlp_ratio=mlp_ratio,
                drop_path=rate,
                layer_scale=layer_scale,
            )
            for index, rate in enumerate(drop_paths)
        )

    def forward(self, x: Float[Tensor, "batch inside height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """A map to a map."""
        x = self.downsample(x)
        down, right = (-x.shape[-2] % self.grid[0], -x.shape[-1] % self.grid[1])
        made: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            pad = (0, right, 0, down) if index % 2 else (right, 0, down, 0)
            x, rows = _windows(F.pad(x, pad) if down or right else x, self.grid)
            x, cross = block(x, torch.cat(made[-self.memory :], dim=1) if made else None)
            if cross is not None:
                made.append(cross)
            x = _joined(x, rows)
            x = F.pad(x, [-side for side in pad]) if down or right else x
        return x


class Stem(nn.Module):
    """Pictures to the first map; checks that they fit the network.

    Two 3 x 3 convolutions with batch norm for strides of 2 and 4 (the hybrid models), or one convolution over separate
    patches (the plain one).
    """

    def __init__(self, channels: int, dim: int, stride: int, patches: bool, smallest: int) -> None:
        super().__init__()
        self.channels = channels
        self.smallest = smallest
        if patches:
            self.conv: nn.Module = nn.Conv2d(channels, dim, stride, stride)
        elif stride in (2, 4):
            self.conv = nn.Sequential(
                ConvNorm(channels, dim // 2, 3, stride // 2), nn.GELU(), ConvNorm(dim // 2, dim, 3, 2)
            )
        else:
            raise ValueError(f"patch must be 2 or 4 with the convolutional stem, got {stride}")

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """Raises ``ValueError`` for other channels, or a picture smaller than the total stride."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape (batch, {self.channels}, height, width), got {tuple(x.shape)}")
        if min(x.shape[-2:]) < self.smallest:
            raise ValueError(f"x must be at least {self.smallest} x {self.smallest} pixels, got {tuple(x.shape[-2:])}")
        # With channels last, a map and its tokens are one memory, and nothing is copied between the two.
        return self.conv(x.contiguous(memory_format=torch.channels_last))


class FcaFormer(nn.Module):
    """The network: a stem, stages of ConvNeXt or Fca blocks, and a linear head on the mean of the last map.

    Args:
        img_size: the size whose maps are single windows; pictures of any other size run too, see :class:`FcaStage`.
        in_chans: channels of a picture.
        num_classes: classes, 0 for features without a head.
        dims, depths: width and number of blocks of each stage.
        heads: attention heads of each stage, 0 for a ConvNeXt stage.
        patch: stride of the stem.
        patches: whether the stem cuts separate patches.
        mlp_ratio: hidden width of the Fca blocks' feed-forward parts over their width.
        drop_path_rate: chance of dropping a branch, growing linearly from 0 to this over the blocks.
        layer_scale: start of the learnable scale on every branch.
        memory: from how many earlier blocks a block takes cross tokens, 0 to switch them off.

    Raises:
        ValueError: stages of unequal number, a size that does not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        dims: Sequence[int] = (64, 128, 192, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (0, 0, 6, 10),
        patch: int = 4,
        patches: bool = False,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        layer_scale: float = 1e-6,
        memory: int = 12,
    ) -> None:
        super().__init__()
        if not len(dims) == len(depths) == len(heads):
            raise ValueError(f"dims, depths and heads must be as many, got {len(dims)}, {len(depths)}, {len(heads)}")
        if memory < 0:
            raise ValueError(f"memory must be at least 0, got {memory}")
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        strides = [patch * 2**stage for stage in range(len(dims))]
        if min(height, width) < strides[-1]:
            raise ValueError(f"img_size must be at least the total stride {strides[-1]}, got {img_size}")
        rates = [drop_path_rate * index / max(1, sum(depths) - 1) for index in range(sum(depths))]
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": stride, "module": f"stages.{stage}"}
            for stage, (dim, stride) in enumerate(zip(dims, strides, strict=True))
        ]
        self.stem = Stem(in_chans, dims[0], patch, patches, strides[-1])
        stages: list[nn.Module] = []
        for stage, (dim, stride) in enumerate(zip(dims, strides, strict=True)):
            inside = dims[stage - 1] if stage else None
            drop_paths = rates[sum(depths[:stage]) : sum(depths[: stage + 1])]
            if heads[stage]:
                grid = (height // stride, width // stride)
                stages.append(FcaStage(inside, dim, heads[stage], grid, drop_paths, mlp_ratio, layer_scale, memory))
            else:
                stages.append(ConvStage(inside, dim, drop_paths, layer_scale))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.apply(_start)

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows cols"]:
        """Pictures to the last map."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Float[Tensor, "batch dim rows cols"], pre_logits: bool = False) -> Tensor:
        """The last map to logits, or to what the head sees with ``pre_logits``."""
        x = self.norm(x.mean((2, 3)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Pictures to logits.

        Raises:
            ValueError: other channels than the network's, or a picture smaller than the total stride.
        """
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for ``num_classes``, 0 for none; ``global_pool`` can only be ``"avg"``."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool must be 'avg', got {global_pool!r}")
        self.num_classes = num_classes
        device, dtype = self.norm.weight.device, self.norm.weight.dtype
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.apply(_start).to(device, dtype)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _tokens(x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch tokens dim"]:
    return x.flatten(2).transpose(1, 2)


def _map(x: Float[Tensor, "batch tokens dim"], size: Sequence[int]) -> Float[Tensor, "batch dim height width"]:
    return x.transpose(1, 2).unflatten(2, size)  # type: ignore[arg-type]


def _windows(x: Tensor, grid: Grid) -> tuple[Float[Tensor, "windows dim rows columns"], Grid]:
    """Windows of a map whose size is a multiple of ``grid``, and how many there are down and across."""
    batch, dim, height, width = x.shape
    down, across = height // grid[0], width // grid[1]
    if (down, across) == (1, 1):
        return x, (1, 1)
    x = x.reshape(batch, dim, down, grid[0], across, grid[1]).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, dim, *grid), (down, across)


def _joined(x: Float[Tensor, "windows dim rows columns"], count: Grid) -> Float[Tensor, "batch dim height width"]:
    """The map that was cut into windows."""
    if count == (1, 1):
        return x
    _, dim, height, width = x.shape
    x = x.reshape(-1, *count, dim, height, width).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, dim, count[0] * height, count[1] * width)


VARIANTS: dict[str, dict[str, Any]] = {
    "fcaformer_l0": {"dims": (192,), "depths": (12,), "heads": (3,), "patch": 16, "patches": True},
    "fcaformer_l1": {"dims": (64, 128, 192, 320), "depths": (2, 2, 6, 2), "heads": (0, 0, 6, 10)},
    "fcaformer_l2": {"dims": (96, 192, 320, 480), "depths": (2, 2, 7, 2), "heads": (0, 0, 10, 15)},
    "fcaformer_l3": {"dims": (96, 192, 320, 512), "depths": (3, 6, 12, 3), "heads": (0, 0, 10, 16)},
    "fcaformer_l4": {"dims": (128, 256, 512, 768), "depths": (3, 6, 12, 3), "heads": (0, 0, 16, 24)},
}


def _default_cfg(variant: str) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.conv" if VARIANTS[variant].get("patches") else "stem.conv.0.0",
        "classifier": "head",
        "license": "unknown",
    }


# register_model reads these by name.
default_cfgs = generate_default_cfgs({variant: _default_cfg(variant) for variant in VARIANTS})


def _build(variant: str, pretrained: bool, options: dict[str, Any]) -> FcaFormer:
    settings = {**VARIANTS[variant], **options}
    stages = tuple(range(len(settings["dims"])))
    return build_model_with_cfg(  # type: ignore[no-any-return]
        FcaFormer,
        variant,
        pretrained,
        feature_cfg={"out_indices": stages, "flatten_sequential": True},
        **settings,
    )


@register_model
def fcaformer_l0(pretrained: bool = False, **options: Any) -> FcaFormer:
    """The plain model: 12 blocks of width 192 on patches of 16, like DeiT-T.

    Built from the paper's description, since the authors' code has no plain model: 5.83M parameters, 5.9M published.
    """
    return _build("fcaformer_l0", pretrained, options)


@register_model
def fcaformer_l1(pretrained: bool = False, **options: Any) -> FcaFormer:
    """The hybrid of 6.2M parameters."""
    return _build("fcaformer_l1", pretrained, options)


@register_model
def fcaformer_l2(pretrained: bool = False, **options: Any) -> FcaFormer:
    """The hybrid of 16.3M parameters."""
    return _build("fcaformer_l2", pretrained, options)


@register_model
def fcaformer_l3(pretrained: bool = False, **options: Any) -> FcaFormer:
    """The hybrid of 27.9M parameters."""
    return _build("fcaformer_l3", pretrained, options)


@register_model
def fcaformer_l4(pretrained: bool = False, **options: Any) -> FcaFormer:
    """The hybrid of 65.6M parameters."""
    return _build("fcaformer_l4", pretrained, options)
