"""FMViT: blocks that mix low and high frequencies, of convolutions that fold for deployment (arXiv 2311.05707).

**What is the paper's and what is ours.** The authors' repository holds no code and no weights. From the paper's own
description come the parts and their purpose: convolutional fusion blocks (CFB) and multi-frequency mixing blocks (FMB)
in stages; in an FMB, attention of pooled keys and values for the low frequencies, convolution for the high ones, both
fused; attention with fewer keys and values and foldable projections (RLMHSA); grouped convolutions with batch norms that
fold, in place of the feed-forward part (gMLP). The names T, S, M, B, L, their parameters and multiply-adds are the
paper's as far as a public table of backbones repeats them: 2.0, 6.4, 12.8, 24.3, 35.3 M and 0.3, 0.8, 2.0, 4.2, 7.1 G.

Ours are all sizes inside: widths, numbers of blocks, where FMBs stand, the share of low frequencies, group widths, the
expansion and the activation. They are chosen so that the *folded* networks come near those totals; accuracies of the
paper therefore need not be theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from everyformer.parts.reparam import RepConv2d, chained, reparameterize

GROUP_WIDTH = 16  # channels of a group of the grouped 3 x 3 convolutions
HEAD_DIM = 32  # channels of an attention head
MULTIGROUP = (1, 4)  # groups of the two branches of a gMLP's 1 x 1 convolutions


def local_conv(dim: int, residual: bool = False, drop_path: float = 0.0) -> RepConv2d:
    """A 3 x 3 convolution whose branches have groups of 16 channels and of one, beside a 1 x 1 and the identity."""
    groups = (max(1, dim // GROUP_WIDTH), dim)
    return RepConv2d(dim, dim, 3, groups=groups, residual=residual, drop=DropPath(drop_path) if residual else None)


class GroupedMLP(nn.Module):
    """gMLP: what stands in place of a feed-forward part, of foldable 1 x 1 convolutions with several groups.

    x + project(relu(expand(x))), where each convolution is a sum of a dense branch and a grouped one, each with its batch
    norm. Folded, it is two plain convolutions.

    Args:
        dim: channels, a multiple of 4.
        ratio: hidden channels over ``dim``.
        drop_path: chance of dropping the branch for a sample in training.
    """

    def __init__(self, dim: int, ratio: float = 2.0, drop_path: float = 0.0) -> None:
        super().__init__()
        hidden = MULTIGROUP[-1] * max(1, round(dim * ratio / MULTIGROUP[-1]))
        self.expand = RepConv2d(dim, hidden, groups=MULTIGROUP)
        self.project = RepConv2d(hidden, dim, groups=MULTIGROUP)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """A map to a map."""
        return x + self.drop_path(self.project(F.relu(self.expand(x))))


class ConvolutionalFusionBlock(nn.Module):
    """CFB: a residual grouped 3 x 3 convolution of many branches, then a gMLP.

    The convolution is linear up to its residual, so that all of it, the residual too, folds into one grouped convolution:
    the folded block is three convolutions.

    Args:
        dim, ratio, drop_path: as in :class:`GroupedMLP`.
    """

    def __init__(self, dim: int, ratio: float = 2.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.local = local_conv(dim, residual=True, drop_path=drop_path)
        self.mlp = GroupedMLP(dim, ratio, drop_path)

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """A map to a map."""
        return self.mlp(self.local(x))


class LightAttention(nn.Module):
    """RLMHSA: every pixel asks, averages over ``reduction`` x ``reduction`` pixels answer; projections fold.

    softmax(Q K^T / sqrt(d)) V with Q = W_q x, [K; V] = W_kv pool(x), then W_o; each W is a foldable 1 x 1 convolution with
    a batch norm in every branch. Keys and values hold only what the average lets through: the low frequencies.

    Args:
        dim: channels, a multiple of ``heads``.
        heads: attention heads.
        reduction: side of the square that is averaged, 1 for attention to every pixel.
    """

    def __init__(self, dim: int, heads: int, reduction: int = 1) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}")
        if reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {reduction}")
        self.heads = heads
        self.reduction = reduction
        self.query = RepConv2d(dim, dim)
        self.key_value = RepConv2d(dim, 2 * dim)
        self.project: nn.Module = RepConv2d(dim, dim)

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """A map to a map; at the lower and right edge the averages are over what is left."""
        reduced = F.avg_pool2d(x, self.reduction, ceil_mode=True, count_include_pad=False) if self.reduction > 1 else x
        query = self._heads(self.query(x))
        key, value = self._heads(self.key_value(reduced)).chunk(2, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.project(mixed.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))  # type: ignore[no-any-return]

    def _heads(self, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch heads tokens head_dim"]:
        head_dim = self.query.outside // self.heads
        return x.flatten(2).unflatten(1, (-1, head_dim)).transpose(2, 3)


class FrequencyMixingBlock(nn.Module):
    """FMB: attention for the low frequencies, convolution for the high ones, fused; then a gMLP.

    x + fusion([attention(x_low); relu(conv(x_high))]), where x_low is the share ``low`` of the channels. The last
    projection of the attention and the fusion are two 1 x 1 convolutions in a row; folded, they are one.

    Args:
        dim, ratio, drop_path: as in :class:`GroupedMLP`.
        reduction: as in :class:`LightAttention`.
        low: share of the channels for the low frequencies, rounded to whole heads of 32; 1 for attention alone, 0 for
            convolution alone.

    Raises:
        ValueError: a share outside 0 to 1, or one that leaves a part without channels.
    """

    def __init__(
        self, dim: int, reduction: int = 1, ratio: float = 2.0, low: float = 0.5, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= low <= 1:
            raise ValueError(f"low must be between 0 and 1, got {low}")
        heads = round(dim * low / HEAD_DIM)
        self.split = (heads * HEAD_DIM, dim - heads * HEAD_DIM)
        if (heads > 0) != (low > 0) or (self.split[1] > 0) != (low < 1):
            raise ValueError(f"dim={dim} and low={low} must split into whole heads of {HEAD_DIM}, got {self.split}")
        self.attention = LightAttention(self.split[0], heads, reduction) if heads else None
        self.local = local_conv(self.split[1]) if self.split[1] else None
        self.fusion: nn.Module = RepConv2d(dim, dim)
        self.drop_path = DropPath(drop_path)
        self.mlp = GroupedMLP(dim, ratio, drop_path)

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """A map to a map."""
        low, high = x.split(self.split, dim=1)
        parts = [] if self.attention is None else [self.attention(low)]
        parts += [] if self.local is None else [F.relu(self.local(high))]
        x = x + self.drop_path(self.fusion(torch.cat(parts, dim=1)))
        return self.mlp(x)  # type: ignore[no-any-return]

    def reparameterize(self) -> None:
        """Fold everything inside, and the attention's projection into the fusion; a second call does nothing."""
        reparameterize(self)
        if self.attention is not None and isinstance(self.attention.project, RepConv2d):
            assert isinstance(self.fusion, RepConv2d)
            assert self.attention.project.conv is not None and self.fusion.conv is not None
            self.fusion = chained(self.attention.project.conv, self.fusion.conv)
            self.attention.project = nn.Identity()


class Downsample(nn.Sequential):
    """Half the resolution and another width: a depthwise 3 x 3 convolution of stride 2, then a 1 x 1, both foldable."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(
            RepConv2d(inside, inside, 3, stride=2, groups=(inside, inside)), nn.ReLU(), RepConv2d(inside, outside)
        )


class Stem(nn.Module):
    """Pictures to the first map by two foldable 3 x 3 convolutions; checks that the pictures fit the network."""

    def __init__(self, channels: int, dim: int, stride: int, smallest: int) -> None:
        super().__init__()
        if stride not in (2, 4):
            raise ValueError(f"patch must be 2 or 4, got {stride}")
        self.smallest = smallest
        self.conv1 = RepConv2d(channels, dim // 2, 3, stride // 2)
        self.conv2 = RepConv2d(dim // 2, dim, 3, 2)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """Raises ``ValueError`` for other channels, or a picture smaller than the total stride."""
        if x.ndim != 4 or x.shape[1] != self.conv1.inside:
            raise ValueError(f"x must have shape (batch, {self.conv1.inside}, height, width), got {tuple(x.shape)}")
        if min(x.shape[-2:]) < self.smallest:
            raise ValueError(f"x must be at least {self.smallest} x {self.smallest} pixels, got {tuple(x.shape[-2:])}")
        return F.relu(self.conv2(F.relu(self.conv1(x))))


class FMViT(nn.Module):
    """The network: a stem, stages of CFBs followed by FMBs, and a linear head on the mean of the last map.

    Args:
        in_chans: channels of a picture.
        num_classes: classes, 0 for features without a head.
        dims: width of each stage, multiples of 16.
        local: number of CFBs of each stage.
        mixed: number of FMBs of each stage, after its CFBs.
        reductions: of the FMBs' attention in each stage.
        patch: stride of the stem, 2 or 4.
        ratio: hidden channels of the gMLPs over the width.
        low: share of low frequencies in the FMBs.
        drop_path_rate: chance of dropping a branch, growing linearly from 0 to this over the blocks.

    Raises:
        ValueError: stages of unequal number, widths that do not fit.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        dims: Sequence[int] = (64, 128, 256, 512),
        local: Sequence[int] = (2, 2, 4, 1),
        mixed: Sequence[int] = (0, 1, 2, 1),
        reductions: Sequence[int] = (8, 4, 2, 1),
        patch: int = 4,
        ratio: float = 2.0,
        low: float = 0.5,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        counts = [len(setting) for setting in (dims, local, mixed, reductions)]
        if len(set(counts)) > 1:
            raise ValueError(f"dims, local, mixed and reductions must be as many, got {counts}")
        if any(dim < GROUP_WIDTH or dim % GROUP_WIDTH for dim in dims):
            raise ValueError(f"dims must be multiples of {GROUP_WIDTH}, got {tuple(dims)}")
        strides = [patch * 2**stage for stage in range(len(dims))]
        blocks = sum(local) + sum(mixed)
        rates = iter([drop_path_rate * index / max(1, blocks - 1) for index in range(blocks)])
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": stride, "module": f"stages.{stage}"}
            for stage, (dim, stride) in enumerate(zip(dims, strides, strict=True))
        ]
        self.stem = Stem(in_chans, dims[0], patch, strides[-1])
        stages = []
        for stage, dim in enumerate(dims):
            parts: list[nn.Module] = [Downsample(dims[stage - 1], dim)] if stage else []
            parts += [ConvolutionalFusionBlock(dim, ratio, next(rates)) for _ in range(local[stage])]
            parts += [
                FrequencyMixingBlock(dim, reductions[stage], ratio, low, next(rates)) for _ in range(mixed[stage])
            ]
            stages.append(nn.Sequential(*parts))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.apply(_start)

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows cols"]:
        """Pictures to the last map."""
        return self.stages(self.stem(x))  # type: ignore[no-any-return]

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

    def reparameterize(self) -> FMViT:
        """Fold all branches, in place, into plain convolutions, for deployment; a second call does nothing.

        The outputs are those of evaluation. ``timm.utils.reparameterize_model`` does the same to a copy.
        """
        return reparameterize(self)

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


# Ours, found by a search for the nearest published totals (see the module's docstring).
VARIANTS: dict[str, dict[str, Any]] = {
    "fmvit_t": {"dims": (32, 64, 128, 256), "local": (2, 2, 3, 2), "mixed": (0, 1, 3, 1)},
    "fmvit_s": {"dims": (48, 128, 256, 512), "local": (2, 1, 3, 2), "mixed": (0, 1, 2, 1)},
    "fmvit_m": {"dims": (64, 160, 320, 640), "local": (3, 2, 8, 2), "mixed": (0, 1, 3, 1)},
    "fmvit_b": {"dims": (128, 224, 448, 896), "local": (3, 3, 6, 1), "mixed": (0, 1, 3, 2)},
    "fmvit_l": {"dims": (128, 256, 512, 896), "local": (3, 2, 10, 1), "mixed": (0, 1, 2, 1), "ratio": 3.0},
}


def _default_cfg() -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": ("stem.conv1.branches.0.0", "stem.conv1.branches.1.0"),
        "classifier": "head",
        "license": "unknown",
    }


# register_model reads these by name.
default_cfgs = generate_default_cfgs({variant: _default_cfg() for variant in VARIANTS})


def _build(variant: str, pretrained: bool, options: dict[str, Any]) -> FMViT:
    settings = {**VARIANTS[variant], **options}
    stages = tuple(range(len(settings["dims"])))
    return build_model_with_cfg(  # type: ignore[no-any-return]
        FMViT,
        variant,
        pretrained,
        feature_cfg={"out_indices": stages, "flatten_sequential": True},
        **settings,
    )


@register_model
def fmvit_t(pretrained: bool = False, **options: Any) -> FMViT:
    """Folded, about the published 2.0M parameters and 0.3G multiply-adds."""
    return _build("fmvit_t", pretrained, options)


@register_model
def fmvit_s(pretrained: bool = False, **options: Any) -> FMViT:
    """Folded, about the published 6.4M parameters and 0.8G multiply-adds."""
    return _build("fmvit_s", pretrained, options)


@register_model
def fmvit_m(pretrained: bool = False, **options: Any) -> FMViT:
    """Folded, about the published 12.8M parameters and 2.0G multiply-adds."""
    return _build("fmvit_m", pretrained, options)


@register_model
def fmvit_b(pretrained: bool = False, **options: Any) -> FMViT:
    """Folded, about the published 24.3M parameters and 4.2G multiply-adds."""
    return _build("fmvit_b", pretrained, options)


@register_model
def fmvit_l(pretrained: bool = False, **options: Any) -> FMViT:
    """Folded, about the published 35.3M parameters and 7.1G multiply-adds."""
    return _build("fmvit_l", pretrained, options)
