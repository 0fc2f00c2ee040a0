"""Sliced Recursive Transformer (arXiv 2111.05297): blocks applied again with the same weights, attention in slices.

``Recursive`` applies any token module several times and lets a module of its own act after each pass;
``SlicedAttention`` attends inside groups of the sequence, other groups in each pass. ``SReT`` is the pyramid of three
stages that the paper trains on ImageNet.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

Permutation = Literal["training", "random", "fixed"] | Callable[[int], Tensor]
PERMUTATIONS = ("training", "random", "fixed")
EPSILON = 1e-6  # of every LayerNorm


class LearnableResidual(nn.Module):
    """``keep * x + add * branch`` with two learned scalars that begin at one (section 3.3)."""

    def __init__(self) -> None:
        super().__init__()
        self.keep = nn.Parameter(torch.ones(1))
        self.add = nn.Parameter(torch.ones(1))

    def forward(self, x: Float[Tensor, "*shape"], branch: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The weighted sum, shaped like its two parts."""
        return torch.addcmul(self.keep * x, self.add, branch)


class PlainResidual(nn.Module):
    """``x + branch``: the residual connection without coefficients, for comparison."""

    def forward(self, x: Float[Tensor, "*shape"], branch: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The sum."""
        return x + branch


class SlicedAttention(nn.Module):
    """Self-attention inside contiguous groups of the sequence, with another grouping in each recursion (section 3.4).

    Scores and values cost ``2 N^2 D / groups`` multiply-adds instead of ``2 N^2 D``. From the second loop on, tokens are
    permuted before they are grouped and put back after, so that what one pass keeps apart the next may bring together.

    Args:
        dim: width of a token, a multiple of ``heads``.
        heads: attention heads.
        groups: number of groups, one for all loops or one per loop; 1 is ordinary attention.
        permutation: ``"random"`` draws one at every call, as the authors do in evaluation too; ``"fixed"`` always takes
            the same; ``"training"`` is random in training and fixed in evaluation; or a function from the number of
            tokens to the permutation.

    Raises:
        ValueError: an argument out of range; in the forward pass, tokens that do not divide into the groups.
    """

    takes_loop = True

    def __init__(
        self, dim: int, heads: int, groups: int | Sequence[int] = 1, permutation: Permutation = "training"
    ) -> None:
        super().__init__()
        self.groups = (groups,) if isinstance(groups, int) else tuple(groups)
        if heads < 1 or dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}")
        if not self.groups or min(self.groups) < 1:
            raise ValueError(f"groups must be at least 1 in each loop, got {groups}")
        if not callable(permutation) and permutation not in PERMUTATIONS:
            raise ValueError(f"permutation must be one of {', '.join(PERMUTATIONS)} or a function, got {permutation!r}")
        self.heads, self.head_dim = heads, dim // heads
        self.permutation = permutation
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"], loop: int = 0) -> Float[Tensor, "batch tokens dim"]:
        """Attend with the groups of recursion ``loop``, counted from 0."""
        batch, tokens, _ = x.shape
        groups = self.groups[min(loop, len(self.groups) - 1)]
        if tokens % groups:
            raise ValueError(f"tokens must divide into the groups, got {tokens} tokens and {groups} groups")
        order = self._order(tokens).to(x.device) if groups > 1 and loop > 0 else None
        if order is not None:
            x = x[:, order]
        # The groups join the batch, so one fused kernel attends in all of them.
        folded = self.qkv(x).reshape(batch * groups, tokens // groups, 3, self.heads, self.head_dim)
        query, key, value = folded.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, tokens, -1)
        if order is not None:
            x = x[:, order.argsort()]
        return self.out(x)  # type: ignore[no-any-return]

    def _order(self, tokens: int) -> Tensor:
        if callable(self.permutation):
            return self.permutation(tokens)
        if self.permutation == "random" or (self.permutation == "training" and self.training):
            return torch.randperm(tokens)
        return torch.tensor(fixed_permutation(tokens))


@torch.compiler.assume_constant_result
def fixed_permutation(tokens: int) -> list[int]:
    """One permutation per number of tokens, always the same: evaluation then gives the same answer twice."""
    return _drawn_once(tokens)


@functools.cache
def _drawn_once(tokens: int) -> list[int]:
    return random.Random(tokens).sample(range(tokens), tokens)


class Mlp(nn.Module):
    """Linear, exact GELU, linear, with ``int(dim * ratio)`` hidden channels."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.up = nn.Linear(dim, int(dim * ratio))
        self.down = nn.Linear(int(dim * ratio), dim)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Each token by itself."""
        return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


class NonLinearProjection(nn.Module):
    """What tells one recursion from the next: ``x <- a x + b MLP(LN(x))`` with weights of its own (section 3.2)."""

    def __init__(self, dim: int, ratio: float = 1.0, coefficients: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPSILON)
        self.mlp = Mlp(dim, ratio)
        self.residual = _residual(coefficients)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Project each token."""
        return self.residual(x, self.mlp(self.norm(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm transformer block with sliced attention and learned residual coefficients."""

    takes_loop = True

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        groups: int | Sequence[int] = 1,
        permutation: Permutation = "training",
        drop_path: float = 0.0,
        coefficients: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPSILON)
        self.attention = SlicedAttention(dim, heads, groups, permutation)
        self.residual1 = _residual(coefficients)
        self.norm2 = nn.LayerNorm(dim, eps=EPSILON)
        self.mlp = Mlp(dim, mlp_ratio)
        self.residual2 = _residual(coefficients)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch tokens dim"], loop: int = 0) -> Float[Tensor, "batch tokens dim"]:
        """One application, in recursion ``loop``."""
        x = self.residual1(x, self.drop_path(self.attention(self.norm1(x), loop)))
        return self.residual2(x, self.drop_path(self.mlp(self.norm2(x))))  # type: ignore[no-any-return]


class Recursive(nn.Module):
    """Any token module applied ``loops`` times with the same weights; ``between[l]``, if given, acts after pass ``l``.

    A module with the attribute ``takes_loop`` is called with the number of the pass, ``block(x, loop)``; any other with
    the tokens alone, so a language model's layer will do.

    Raises:
        ValueError: ``loops`` below 1, or another number of modules in ``between``.
    """

    def __init__(self, block: nn.Module, loops: int = 2, between: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        if loops < 1:
            raise ValueError(f"loops must be at least 1, got {loops}")
        if between and len(between) != loops:
            raise ValueError(f"between must hold one module per loop, got {len(between)} for {loops} loops")
        self.loops = loops
        self.block = block
        self.between = nn.ModuleList(between)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Apply the block ``loops`` times."""
        numbered = getattr(self.block, "takes_loop", False)
        for loop in range(self.loops):
            x = self.block(x, loop) if numbered else self.block(x)
            if self.between:
                x = self.between[loop](x)
        return x


class Stem(nn.Sequential):
    """Three times [3 x 3 convolution, BatchNorm, ReLU], as published each with stride 2."""

    def __init__(self, channels: int, dim: int, strides: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for before, after, stride in zip((channels, dim // 2, dim), (dim // 2, dim, dim), strides, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)


class SReT(nn.Module):
    """The image classifier: a convolutional stem and three stages of recursive blocks, (batch, 3, H, W) to logits.

    ``depths`` counts applications and ``blocks`` distinct blocks, so a stage loops ``depth / blocks`` times. Stage ``s``
    has width ``base_dim * heads[s]``. Other sizes than ``img_size`` work where the tokens divide into the groups: the
    position map is interpolated.

    Args:
        groups: for each loop, the number of attention groups in each stage; ``None`` is ordinary attention.
        projection: whether a non-linear projection follows each application.
        coefficients: whether the residual connections have learned coefficients.
        stem_strides: strides of the stem's three convolutions, (2, 2, 2) as published.
        num_classes: 0 gives the pooled features.

    Raises:
        ValueError: an argument out of range, named; in the forward pass, a picture smaller than the total stride or with
            other channels, or tokens that do not divide into the groups.
    """

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        base_dim: int = 32,
        heads: Sequence[int] = (2, 4, 8),
        depths: Sequence[int] = (4, 10, 6),
        blocks: Sequence[int] = (2, 5, 3),
        mlp_ratio: float = 3.6,
        projection_ratio: float = 1.0,
        groups: Sequence[Sequence[int]] | None = ((8, 4, 1), (2, 1, 1)),
        permutation: Permutation = "training",
        projection: bool = True,
        coefficients: bool = True,
        stem_strides: Sequence[int] = (2, 2, 2),
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        dims = [base_dim * count for count in heads]
        loops = _check(dims, depths, blocks, groups, stem_strides)
        stride = math.prod(stem_strides)
        self.num_classes, self.in_chans = num_classes, in_chans
        self.total_stride = stride * 2 ** (len(dims) - 1)
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": stride * 2**stage, "module": f"stages.{stage}"}
            for stage, dim in enumerate(dims)
        ]
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.stem = Stem(in_chans, dims[0], stem_strides)
        self.position = nn.Parameter(torch.zeros(1, dims[0], *(math.ceil(side / stride) for side in size)))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.position_drop = nn.Dropout(drop_rate)

        rates = [drop_path_rate * index / max(1, sum(depths) - 1) for index in range(sum(depths))]
        self.downsamples = nn.ModuleList([nn.Identity()])
        self.stages = nn.ModuleList()
        for stage, dim in enumerate(dims):
            if stage:
                self.downsamples.append(nn.Conv2d(dims[stage - 1], dim, 3, 2, 1, groups=dims[stage - 1]))
            # A block keeps one rate for all of its loops: the first of the stage's, as the authors train.
            first = sum(depths[:stage])
            sliced = [loop[stage] for loop in groups] if groups else 1
            self.stages.append(
                nn.Sequential(
                    *(
                        Recursive(
                            Block(
                                dim, heads[stage], mlp_ratio, sliced, permutation, rates[first + index], coefficients
                            ),
                            loops[stage],
                            [NonLinearProjection(dim, projection_ratio, coefficients) for _ in range(loops[stage])]
                            if projection
                            else (),
                        )
                        for index in range(blocks[stage])
                    )
                )
            )
        self.norm = nn.LayerNorm(dims[-1], eps=EPSILON)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = _classifier(dims[-1], num_classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows cols"]:
        """The last stage's map."""
        return self.forward_intermediates(x, indices=1)[0]  # type: ignore[no-any-return]

    def forward_head(
        self, x: Float[Tensor, "batch dim rows cols"], pre_logits: bool = False
    ) -> Float[Tensor, "batch classes"]:
        """Average over the map, LayerNorm, and the classifier unless ``pre_logits``."""
        x = self.head_drop(self.norm(x.mean((2, 3))))
        return x if pre_logits else self.head(x)  # type: ignore[no-any-return]

    def forward_intermediates(
        self,
        x: Float[Tensor, "batch channels height width"],
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of the stages that ``indices`` names (an int: the last so many), after the last map unless told."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        if norm:
            raise ValueError("norm must be False: the final norm follows the pooling, it is no map's")
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"x must have shape (batch, {self.in_chans}, height, width), got {tuple(x.shape)}")
        if min(x.shape[2:]) < self.total_stride:
            raise ValueError(f"x must be at least {self.total_stride} pixels high and wide, got {tuple(x.shape[2:])}")
        taken, last = feature_take_indices(len(self.stages), indices)
        x = self.stem(x)
        x = self.position_drop(x + self._positions(x.shape[2], x.shape[3]))
        found = []
        for stage, (down, blocks) in enumerate(zip(self.downsamples, self.stages, strict=True)):
            if stop_early and stage > last:
                break
            x = down(x)
            shape = x.shape
            x = blocks(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(shape)
            if stage in taken:
                found.append(x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last one that ``indices`` names, and the classifier."""
        taken, last = feature_take_indices(len(self.stages), indices)
        self.stages, self.downsamples = self.stages[: last + 1], self.downsamples[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.reset_classifier(0)
        return taken  # type: ignore[no-any-return]

    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for ``num_classes``; 0 leaves the features."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool must be 'avg', got {global_pool!r}")
        self.num_classes = num_classes
        self.head = _classifier(self.num_features, num_classes).to(self.position)

    def _positions(self, rows: int, columns: int) -> Tensor:
        if (rows, columns) == self.position.shape[2:]:
            return self.position
        return F.interpolate(self.position, (rows, columns), mode="bicubic", align_corners=False)


def _residual(coefficients: bool) -> nn.Module:
    return LearnableResidual() if coefficients else PlainResidual()


def _classifier(dim: int, classes: int) -> nn.Module:
    return nn.Linear(dim, classes) if classes else nn.Identity()


def _check(
    dims: Sequence[int],
    depths: Sequence[int],
    blocks: Sequence[int],
    groups: Sequence[Sequence[int]] | None,
    strides: Sequence[int],
) -> list[int]:
    """The loops of each stage; ``ValueError`` names an argument that does not fit."""
    stages = len(dims)
    if len(depths) != stages or len(blocks) != stages:
        raise ValueError(f"depths and blocks must have {stages} stages like heads, got {depths} and {blocks}")
    if any(count < 1 or depth < count or depth % count for depth, count in zip(depths, blocks, strict=True)):
        raise ValueError(f"depths must be multiples of blocks, got depths={tuple(depths)} and blocks={tuple(blocks)}")
    if any(after % before for before, after in itertools.pairwise(dims)):
        raise ValueError(f"each stage's width must be a multiple of the one before, got {dims}")
    if dims[0] < 2 or dims[0] % 2:
        raise ValueError(f"the first stage's width must be even, got {dims[0]}")
    if len(strides) != 3:
        raise ValueError(f"stem_strides must hold three strides, got {strides}")
    loops = [depth // count for depth, count in zip(depths, blocks, strict=True)]
    if groups is not None:
        if len(groups) != max(loops):
            raise ValueError(f"groups must have one entry per loop, got {len(groups)} for {max(loops)} loops")
        if any(len(loop) != stages for loop in groups):
            raise ValueError(f"groups must name {stages} stages in each loop, got {groups}")
    return loops


def soft_distillation_loss(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Cross entropy between the teacher's and the student's distributions, mean over the batch (section 3.6).

    There is no term for the true class, and no factor for the temperature.

    Raises:
        ValueError: a temperature that is not above 0, or logits of different shapes.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if student.shape != teacher.shape:
        raise ValueError(f"teacher must be shaped like student, got {tuple(teacher.shape)}, {tuple(student.shape)}")
    return F.cross_entropy(student / temperature, (teacher / temperature).softmax(-1))


TINY = {"base_dim": 32, "heads": (2, 4, 8), "mlp_ratio": 3.6, "projection_ratio": 1.0}
LARGER_TINY = {**TINY, "mlp_ratio": 4.0}
SMALL = {"base_dim": 42, "heads": (3, 6, 12), "mlp_ratio": 3.0, "projection_ratio": 2.0}
SLICED = {"groups": ((8, 4, 1), (2, 1, 1))}
WHOLE: dict[str, Any] = {"groups": None}

# The published variants: name, sizes.
VARIANTS: dict[str, dict[str, Any]] = {
    "sret_t": {**TINY, **SLICED},
    "sret_t_unsliced": {**TINY, **WHOLE},
    "sret_t_unsliced_384": {**TINY, **WHOLE, "img_size": 384},
    "sret_lt": {**LARGER_TINY, **SLICED},
    "sret_lt_16_14_1": {**LARGER_TINY, "groups": ((16, 14, 1), (1, 1, 1))},
    "sret_lt_unsliced": {**LARGER_TINY, **WHOLE},
    "sret_s": {**SMALL, **SLICED},
    "sret_s_unsliced": {**SMALL, **WHOLE},
    "sret_s_unsliced_384": {**SMALL, **WHOLE, "img_size": 384},
    "sret_s_unsliced_512": {**SMALL, **WHOLE, "img_size": 512},
}


def _configuration(size: int) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "crop_pct": 0.9 if size == 224 else 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0",
        "classifier": "head",
        "license": "mit",
    }


default_cfgs = generate_default_cfgs(
    {f"{name}.untrained": _configuration(sizes.get("img_size", 224)) for name, sizes in VARIANTS.items()}
)


def _create(name: str, pretrained: bool = False, **options: Any) -> SReT:
    """A published variant; timm's wrapper takes ``features_only``, ``out_indices`` and the like."""
    if pretrained:
        raise ValueError("pretrained must be False: the authors' weights are files to download, see checkpoint.load")
    return build_model_with_cfg(  # type: ignore[no-any-return]
        SReT, name, False,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        **{**VARIANTS[name], **options},
    )  # fmt: skip


def create(name: str, **options: Any) -> SReT:
    """A published variant by name, ``options`` replacing its sizes.

    Raises:
        ValueError: no variant of that name.
    """
    if name not in VARIANTS:
        raise ValueError(f"name must be one of {', '.join(VARIANTS)}, got {name!r}")
    return _create(name, **options)


@register_model
def sret_t(pretrained: bool = False, **options: Any) -> SReT:
    """SReT-T, sliced: 4.8M parameters, 1.1G multiply-adds."""
    return _create("sret_t", pretrained, **options)


@register_model
def sret_t_unsliced(pretrained: bool = False, **options: Any) -> SReT:
    """SReT-T with whole attention: 1.4G multiply-adds."""
    return _create("sret_t_unsliced", pretrained, **options)


@register_model
def sret_t_unsliced_384(pretrained: bool = False, **options: Any) -> SReT:
    """SReT-T with whole attention, for pictures of 384 pixels."""
    return _create("sret_t_unsliced_384", pretrained, **options)


@register_model
def sret_lt(pretrained: bool = False, **options: Any) -> SReT:
    """SReT-LT, sliced in 8, 4, 1 and then 2, 1, 1 groups: 5.0M parameters, 1.2G multiply-adds."""
    return _create("sret_lt", pretrained, **options)


@register_model
def sret_lt_16_14_1(pretrained: bool = False, **options: Any) -> SReT:
    """SReT-LT, sliced in 16, 14, 1 groups and whole in the second loop: 1.2G multiply-adds."""
    return _create("sret_lt_16_14_1", pretrained, **options)


@register_model
def sret_lt_unsliced(pretrained: bool = False, **options: Any) -> SReT:
    """SReT-LT with whole attention: 1.4G multiply-adds."""
    return _create("sret_lt_unsliced", pretrained, **options)


@register_model
def sret_s(pretrained: bool = False, **options: Any) -> SReT:
    """SReT-S, sliced: 20.9M parameters, 4.2G multiply-adds."""
    return _create("sret_s", pretrained, **options)


@register_model
def sret_s_unsliced(pretrained: bool = False, **options: Any) -> SReT:
    """SReT-S with whole attention: 4.7G multiply-adds."""
    return _create("sret_s_unsliced", pretrained, **options)


@register_model
def sret_s_unsliced_384(pretrained: bool = False, **options: Any) -> SReT:
    """SReT-S with whole attention, for pictures of 384 pixels."""
    return _create("sret_s_unsliced_384", pretrained, **options)


@register_model
def sret_s_unsliced_512(pretrained: bool = False, **options: Any) -> SReT:
    """SReT-S with whole attention, for pictures of 512 pixels."""
    return _create("sret_s_unsliced_512", pretrained, **options)
