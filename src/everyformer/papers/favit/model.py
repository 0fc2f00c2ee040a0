"""FaViT: attention whose matrix is factorised into sparse ones, one per group of channels (arXiv 2312.08614).

Full attention compares every token with every other. *Factorised self-attention* (FaSA) splits the channels into groups
that see the map at different grains and lets each token attend, in every group, to a few keys only. Together they cover
the map, and no group's keys lie in a window around the query: there are no windows to shift. Four stages of such blocks
make a backbone, FaViT-B0 to B3.

Three details of the published code are kept, so that the authors' weights give the authors' outputs: windows are pooled
over runs of (window, channel) pairs (see :class:`WindowGroup`), the coarse group's keys grow with the picture (see
:class:`CoarseGroup`), and a coarse grid that does not divide the map leaves its last rows and columns out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn


class DepthwiseConv(nn.Conv2d):
    """A 3 x 3 convolution of each channel, on maps with channels last."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Float[Tensor, "batch height width dim"]) -> Float[Tensor, "batch height width dim"]:
        """A map to a map."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class CoarseGroup(nn.Module):
    """Attention of all tokens to the map reduced by a strided convolution (one head).

    A convolution of kernel and stride ``reduction`` gives one key for so many tokens squared. With a fixed reduction
    this is the one part of FaSA whose keys grow with the picture; it holds an eighth of the channels.
    """

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, dim, reduction, reduction)
        self.norm = nn.LayerNorm(dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.detail = DepthwiseConv(dim)

    def forward(
        self, query: Float[Tensor, "batch height width dim"], x: Float[Tensor, "batch height width dim"]
    ) -> Float[Tensor, "batch height width dim"]:
        """The group's queries and tokens to mixed tokens."""
        coarse = self.norm(self.reduce(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        key, value = self.key_value(coarse).chunk(2, dim=-1)
        value = value + self.detail(value)
        query, key, value = (t.flatten(1, 2).unsqueeze(1) for t in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).reshape(x.shape)


class WindowGroup(nn.Module):
    """Attention of all tokens to ``window`` squared keys that are fused across windows.

    The map, continued by reflection to whole windows, is cut into windows of ``window`` x ``window`` tokens that lie a
    dilation apart. The tokens at the same place of all windows are fused into one key: their mean, then a linear map.
    With L windows and c channels in a head, the published networks average over runs of L among the L c numbers (window,
    channel) of a place, not over the windows of one channel: value j of a key is a mean over all channels of about L / c
    windows. So the values of a key still know from which part of the map they come.

    Args:
        dim: channels of the group, a multiple of ``heads``.
        heads: attention heads; they share the linear maps.
        window: rows and columns of a window.
    """

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        width = dim // heads
        self.across = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.detail = DepthwiseConv(dim)

    def forward(
        self, query: Float[Tensor, "batch heads tokens width"], x: Float[Tensor, "batch rows columns dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """The group's queries and the tokens that its windows hold (see :func:`held`) to mixed tokens."""
        batch, rows, columns, dim = x.shape
        side, width = self.window, dim // self.heads
        x = x.view(batch, rows // side, side, columns // side, side, self.heads, width)
        # To places in a window, and there to the runs of (window, channel) pairs that are averaged.
        key = x.permute(0, 5, 2, 4, 1, 3, 6).reshape(batch, self.heads, side * side, width, -1).mean(-1)
        key, value = self.key_value(self.across(key)).chunk(2, dim=-1)
        detail = self.detail(value.transpose(1, 2).reshape(batch, side, side, dim))
        value = value + detail.reshape(batch, side * side, self.heads, width).transpose(1, 2)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def held(
    x: Float[Tensor, "batch height width channels"], window: int, dilation: int
) -> Float[Tensor, "batch rows columns channels"]:
    """The tokens that windows hold, window after window: a multiple of ``window`` down and across."""
    if dilation == 1 and x.shape[1] % window == 0 and x.shape[2] % window == 0:
        return x
    rows, columns = (places(length, window, dilation, x.device) for length in x.shape[1:3])
    return x[:, rows][:, :, columns]


def places(length: int, window: int, dilation: int, device: torch.device) -> Int[Tensor, " places"]:
    """Which of ``length`` rows the windows hold, window after window; rows past the end are reflected."""
    extent = dilation * (window - 1) + 1
    starts = extent * torch.arange(-(-length // extent), device=device)
    place = (starts[:, None] + dilation * torch.arange(window, device=device)).flatten()
    period = max(1, 2 * (length - 1))
    return torch.minimum(place % period, -place % period)


class FactorizedSelfAttention(nn.Module):
    """FaSA (arXiv 2312.08614, section 3): groups of channels attend to keys of different grain.

    An eighth of the channels attends to the reduced map (:class:`CoarseGroup`), the rest in equal parts to keys from
    dense windows and from windows dilated by ``reduction`` (:class:`WindowGroup`). Without reduction the second and
    third would be one: seven eighths attend to dense windows.

    Args:
        dim: channels, a multiple of 16 (of 8 without reduction) whose groups divide into the heads.
        heads: attention heads of the window groups.
        reduction: stride of the coarse grid, and dilation; 1 for none.
        window: rows and columns of a window.

    Raises:
        ValueError: a width that does not divide, a reduction or window below 1.
    """

    def __init__(self, dim: int, heads: int, reduction: int = 1, window: int = 7) -> None:
        super().__init__()
        if reduction < 1 or window < 1 or heads < 1:
            raise ValueError(f"heads, reduction and window must be at least 1, got {heads}, {reduction}, {window}")
        dilations = (1, reduction) if reduction > 1 else (1,)
        count = len(dilations)
        grouped = 7 * dim // (8 * count)
        if dim % (8 * count) or grouped % heads:
            raise ValueError(
                f"dim must be a multiple of {8 * count} with 7/8 of it in {count} x {heads} heads, got dim={dim}"
            )
        self.heads = heads
        self.dim = dim
        self.reduction = reduction
        self.window = window
        self.dilations = dilations
        self.sizes = (dim // 8, dim - dim // 8)
        self.query = nn.Linear(dim, dim)
        self.coarse = CoarseGroup(dim // 8, reduction)
        self.neighbours = DepthwiseConv(self.sizes[1])
        self.project = nn.Linear(self.sizes[1], self.sizes[1])
        self.groups = nn.ModuleList(WindowGroup(grouped, heads, window) for _ in dilations)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch height width dim"]) -> Float[Tensor, "batch height width dim"]:
        """A map to a map.

        Raises:
            ValueError: other channels, or a map smaller than the coarse grid's step.
        """
        if x.ndim != 4 or x.shape[-1] != self.dim or min(x.shape[1:3]) < self.reduction:
            raise ValueError(
                f"x must have shape (batch, height, width, {self.dim}) with at least {self.reduction} rows and columns, "
                f"got {tuple(x.shape)}"
            )
        coarse, fine = x.split(self.sizes, dim=-1)
        coarse_query, fine_query = self.query(x).split(self.sizes, dim=-1)
        mixed = [self.coarse(coarse_query, coarse).flatten(1, 2)]
        # Each head holds a part of every group.
        queries = fine_query.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(len(self.groups), -1)
        fine = self.neighbours(fine)
        maps = zip(self.project.weight.chunk(len(self.groups)), self.project.bias.chunk(len(self.groups)), strict=True)
        for group, dilation, query, (weight, bias) in zip(self.groups, self.dilations, queries, maps, strict=True):
            # A projection works token by token, so only what the windows hold has to be projected.
            mixed.append(group(query, F.linear(held(fine, self.window, dilation), weight, bias)))
        return self.out(torch.cat(mixed, dim=-1)).view_as(x)


class Block(nn.Module):
    """Factorised attention, then a feed-forward part with a depthwise convolution inside.

    Args:
        dim, heads, reduction, window: as in :class:`FactorizedSelfAttention`.
        mlp_ratio: hidden width of the feed-forward part over ``dim``.
        drop_path: chance of dropping a branch in training.
    """

    def __init__(
        self, dim: int, heads: int, reduction: int, window: int = 7, mlp_ratio: float = 4.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = FactorizedSelfAttention(dim, heads, reduction, window)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), DepthwiseConv(hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch height width dim"]) -> Float[Tensor, "batch height width dim"]:
        """A map to a map."""
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Overlapping patches (a strided convolution and a norm), blocks, and a norm.

    Args:
        inside, dim: channels before and after the patches.
        stride: of the patches, which are ``2 * stride - 1`` wide.
        blocks: the blocks.
        smallest: rows and columns that a map must have.
    """

    def __init__(self, inside: int, dim: int, stride: int, blocks: Sequence[Block], smallest: int) -> None:
        super().__init__()
        self.inside = inside
        self.smallest = smallest
        self.patches = nn.Conv2d(inside, dim, 2 * stride - 1, stride, stride - 1)
        self.patch_norm = nn.LayerNorm(dim)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Float[Tensor, "batch inside height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """A map to a smaller one; raises ``ValueError`` for other channels, or a map that is too small."""
        if x.ndim != 4 or x.shape[1] != self.inside:
            raise ValueError(f"x must have shape (batch, {self.inside}, height, width), got {tuple(x.shape)}")
        if min(x.shape[-2:]) < self.smallest:
            raise ValueError(f"x must be at least {self.smallest} x {self.smallest} pixels, got {tuple(x.shape[-2:])}")
        # With channels last in memory, a map and its tokens are the same and nothing is copied between the two.
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.patch_norm(self.patches(x).permute(0, 2, 3, 1))
        return self.norm(self.blocks(x)).permute(0, 3, 1, 2)


class FaViT(nn.Module):
    """The network: stages, and a linear head on the mean of the last map.

    Args:
        in_chans: channels of a picture.
        num_classes: classes, 0 for features without a head.
        dims, depths, heads, mlp_ratios, reductions: width, blocks, attention heads, feed-forward ratio and coarse grid of
            each stage.
        patch: stride of the first stage's patches, which overlap by half; the later ones halve the resolution.
        window: rows and columns of the attention's windows.
        drop_path_rate: chance of dropping a branch, growing linearly from 0 to this over the blocks.

    Raises:
        ValueError: stages of unequal number, a width that does not divide.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        dims: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratios: Sequence[float] = (8, 6, 4, 4),
        reductions: Sequence[int] = (8, 4, 2, 1),
        patch: int = 4,
        window: int = 7,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        options = {"dims": dims, "depths": depths, "heads": heads, "mlp_ratios": mlp_ratios, "reductions": reductions}
        lengths = {name: len(values) for name, values in options.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{', '.join(options)} must be as many, got {', '.join(map(str, lengths.values()))}")
        strides = [patch * 2**stage for stage in range(len(dims))]
        rates = [drop_path_rate * index / max(1, sum(depths) - 1) for index in range(sum(depths))]
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": stride, "module": f"stages.{stage}"}
            for stage, (dim, stride) in enumerate(zip(dims, strides, strict=True))
        ]
        # Every stage's map must have a row for the coarse grid.
        smallest = max(stride * step for stride, step in zip(strides, reductions, strict=True))
        stages = []
        for stage, dim in enumerate(dims):
            sizes = (dim, heads[stage], reductions[stage], window, mlp_ratios[stage])
            blocks = [Block(*sizes, rate) for rate in rates[sum(depths[:stage]) : sum(depths[: stage + 1])]]
            inside, stride = (dims[stage - 1], 2) if stage else (in_chans, patch)
            stages.append(Stage(inside, dim, stride, blocks, 1 if stage else smallest))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.apply(_start)

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows cols"]:
        """Pictures to the last map, normalised."""
        return self.stages(x)

    def forward_head(self, x: Float[Tensor, "batch dim rows cols"], pre_logits: bool = False) -> Tensor:
        """The last map to logits, or to what the head sees with ``pre_logits``."""
        x = x.mean((2, 3))
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
        weight = next(self.parameters())
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.apply(_start).to(weight.device, weight.dtype)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        nn.init.normal_(module.weight, 0.0, math.sqrt(2 * module.groups / (height * width * module.out_channels)))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


VARIANTS: dict[str, dict[str, Any]] = {
    "favit_b0": {"dims": (32, 64, 128, 256), "depths": (2, 2, 6, 2)},
    "favit_b1": {"dims": (64, 128, 256, 512), "depths": (2, 2, 6, 2)},
    "favit_b2": {"dims": (64, 128, 256, 512), "depths": (2, 3, 18, 3)},
    "favit_b3": {"dims": (96, 192, 384, 768), "depths": (2, 3, 14, 3)},
}

_DEFAULT_CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": None,
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "stages.0.patches",
    "classifier": "head",
    "license": "unknown",
}

# register_model reads these by name.
default_cfgs = generate_default_cfgs(dict.fromkeys(VARIANTS, _DEFAULT_CFG))


def _build(variant: str, pretrained: bool, options: dict[str, Any]) -> FaViT:
    settings = {**VARIANTS[variant], **options}
    stages = tuple(range(len(settings["dims"])))
    return build_model_with_cfg(  # type: ignore[no-any-return]
        FaViT,
        variant,
        pretrained,
        feature_cfg={"out_indices": stages, "flatten_sequential": True},
        **settings,
    )


@register_model
def favit_b0(pretrained: bool = False, **options: Any) -> FaViT:
    """The network of 3.4M parameters."""
    return _build("favit_b0", pretrained, options)


@register_model
def favit_b1(pretrained: bool = False, **options: Any) -> FaViT:
    """The network of 13.0M parameters."""
    return _build("favit_b1", pretrained, options)


@register_model
def favit_b2(pretrained: bool = False, **options: Any) -> FaViT:
    """The network of 24.9M parameters."""
    return _build("favit_b2", pretrained, options)


@register_model
def favit_b3(pretrained: bool = False, **options: Any) -> FaViT:
    """The network of 48.7M parameters."""
    return _build("favit_b3", pretrained, options)
