"""WaveMix (arXiv 2205.14375): pixels mixed by a wavelet transform, channels by 1 x 1 convolutions, and nothing else.

The block first, then the networks for classification, segmentation and super-resolution, then the published variants,
which importing this module puts into timm's registry.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from everyformer.ops.dwt import haar_split

Stem = Literal["patch", "strided"]
Upsample = Literal["transposed", "bilinear", "nearest"]


class WaveMixBlock(nn.Module):
    """The mixer of one resolution (section 3): reduce, transform, mix channels at each level, come back.

    A 1 x 1 convolution reduces to a quarter of the channels; a Haar transform of ``levels`` levels makes them all of the
    channels again, at half the size per level. From the coarsest level to the finest, channels are mixed and brought
    to twice the size, where the next level takes them in. The residual connection belongs to the network.

    Args:
        dim: channels, divisible by 4.
        levels: of the transform, 1 to 4; height and width must be divisible by 2 ** levels.
        mult: hidden channels of the mixing as a multiple of ``dim``.
        ff_dim: channels between mixing and upsampling, ``dim`` by default.
        dropout: within the mixing.
        upsample: a learned transposed convolution, or an interpolation without parameters, before which the mixing
            itself ends in the channels that are wanted.

    Raises:
        ValueError: a size that is not accepted.
    """

    def __init__(
        self,
        dim: int,
        levels: int = 1,
        *,
        mult: int = 2,
        ff_dim: int | None = None,
        dropout: float = 0.5,
        upsample: Upsample = "transposed",
    ) -> None:
        super().__init__()
        if dim < 4 or dim % 4:
            raise ValueError(f"dim must be a positive multiple of 4, got {dim}")
        if not 1 <= levels <= 4:
            raise ValueError(f"levels must be 1 to 4, got {levels}")
        if upsample not in ("transposed", "bilinear", "nearest"):
            raise ValueError(f"upsample must be transposed, bilinear or nearest, got {upsample!r}")
        if ff_dim is not None and upsample != "transposed":
            raise ValueError(f"ff_dim must be None for upsample={upsample!r}, which changes no channels, got {ff_dim}")
        self.dim, self.levels = dim, levels
        self.reduce = nn.Conv2d(dim, dim // 4, 1)
        self.mix = nn.ModuleList()
        for level in range(1, levels + 1):
            into = dim if level == levels else dim + dim // 2
            out = dim if level == 1 else dim // 2
            width = out if upsample != "transposed" else ff_dim or dim
            up = (
                nn.ConvTranspose2d(width, out, 4, stride=2, padding=1)
                if upsample == "transposed"
                else nn.Upsample(scale_factor=2, mode=upsample)
            )
            self.mix.append(
                nn.Sequential(
                    nn.Conv2d(into, mult * dim, 1),
                    nn.GELU(),
                    nn.Dropout(dropout),
                    nn.Conv2d(mult * dim, width, 1),
                    up,
                    nn.BatchNorm2d(out),
                )
            )

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """Raises ``ValueError`` for other channels or a size not divisible by 2 ** levels."""
        step = 2**self.levels
        if x.ndim != 4 or x.shape[1] != self.dim or x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"x must have shape (batch, {self.dim}, height, width) with sides divisible by {step}, got {tuple(x.shape)}"
            )
        low, bands = self.reduce(x), []
        for _ in range(self.levels):
            # The low part and the highs, the band fastest. Each level keeps the low part of its own (figure 2).
            bands.append(haar_split(low))
            low = bands[-1][:, : self.dim // 4]
        mixed = self.mix[-1](bands[-1])
        for mix, band in zip(reversed(self.mix[:-1]), reversed(bands[:-1]), strict=True):
            mixed = mix(torch.cat([band, mixed], dim=1))
        return mixed


class WaveMixBackbone(nn.Module):
    """A stem, then ``depth`` blocks of one resolution with residual connections.

    Args:
        stem: ``patch``, three convolutions of which the last has kernel and stride ``patch_size``, GELU and BatchNorm; or
            ``strided``, two 3 x 3 convolutions of ``stride`` each.
        drop_path_rate: chance of leaving out the last block's branch per sample; earlier blocks proportionally less.

    Raises:
        ValueError: a setting that is not accepted.
    """

    def __init__(
        self,
        depth: int,
        dim: int,
        levels: int,
        *,
        stem: Stem = "patch",
        patch_size: int = 4,
        stride: int = 2,
        mult: int = 2,
        ff_dim: int | None = None,
        dropout: float = 0.5,
        upsample: Upsample = "transposed",
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("depth", depth), ("patch_size", patch_size), ("stride", stride), ("in_chans", in_chans)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be in [0, 1), got {drop_path_rate}")
        blocks = [
            WaveMixBlock(dim, levels, mult=mult, ff_dim=ff_dim, dropout=dropout, upsample=upsample)
            for _ in range(depth)
        ]
        if stem == "patch":
            self.strides = [patch_size]
            self.stem = nn.Sequential(
                nn.Conv2d(in_chans, dim // 4, 3, padding=1),
                nn.Conv2d(dim // 4, dim // 2, 3, padding=1),
                nn.Conv2d(dim // 2, dim, patch_size, patch_size),
                nn.GELU(),
                nn.BatchNorm2d(dim),
            )
        elif stem == "strided":
            self.strides = [stride, stride]
            self.stem = nn.Sequential(
                nn.Conv2d(in_chans, dim // 2, 3, stride, padding=1), nn.Conv2d(dim // 2, dim, 3, stride, padding=1)
            )
        else:
            raise ValueError(f"stem must be patch or strided, got {stem!r}")
        self.kind, self.levels, self.in_chans = stem, levels, in_chans
        self.blocks = nn.ModuleList(blocks)
        self.drop_paths = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.num_features = self.head_hidden_size = dim
        reduction = self.strides[0] * self.strides[-1] ** (len(self.strides) - 1)
        self.feature_info = [{"num_chs": dim, "reduction": reduction, "module": f"blocks.{i}"} for i in range(depth)]

    def fits(self, side: int) -> bool:
        """Whether a picture may have this height or width."""
        if self.kind == "patch" and side % self.strides[0]:
            return False
        for stride in self.strides:
            side = -(-side // stride)
        return side % 2**self.levels == 0

    def forward_features(self, x: Float[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch dim h w"]:
        """The last block's map.

        Raises:
            ValueError: wrong channels, or a side that does not fit (the next one that does is named).
        """
        return self._maps(x, len(self.blocks))[-1]

    def _maps(self, x: Tensor, count: int) -> list[Tensor]:
        """The maps after each of the first ``count`` blocks."""
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"x must have shape (batch, {self.in_chans}, height, width), got {tuple(x.shape)}")
        for name, side in (("height", x.shape[2]), ("width", x.shape[3])):
            if not self.fits(side):
                following = next(larger for larger in range(side + 1, 10**9) if self.fits(larger))
                raise ValueError(
                    f"{name} {side} does not fit: after the stem (stride {' x '.join(map(str, self.strides))}) it must "
                    f"be whole and divisible by {2**self.levels} for {self.levels} levels; the next that fits is {following}"
                )
        x = self.stem(x)
        maps = []
        for block, rate in zip(self.blocks[:count], self.drop_paths, strict=False):
            branch = block(x)
            if rate and self.training:
                branch = branch * x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - rate) / (1 - rate)
            x = x + branch
            maps.append(x)
        return maps


class WaveMix(WaveMixBackbone):
    """The classifier: mean over the positions, then one linear layer. Settings: :class:`WaveMixBackbone`."""

    def __init__(
        self, num_classes: int = 1000, depth: int = 16, dim: int = 192, levels: int = 3, **options: Any
    ) -> None:
        super().__init__(depth, dim, levels, **options)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer; none for 0 classes. The pooling is always the mean (``global_pool`` is timm's argument)."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool must be avg, got {global_pool!r}")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def forward_head(self, x: Float[Tensor, "batch dim h w"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Logits of a map; with ``pre_logits`` the pooled channels."""
        x = x.mean(dim=(2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, x: Float[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch classes"]:
        """Logits; raises as :meth:`forward_features` does."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Float[Tensor, "batch in_chans height width"],
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """timm's way to the maps after blocks ``indices``; there is no last norm, and ``output_fmt`` is NCHW."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, got {output_fmt!r}")
        take, last = feature_take_indices(len(self.blocks), indices)
        maps = self._maps(x, last + 1 if stop_early else len(self.blocks))
        taken = [maps[index] for index in take]
        return taken if intermediates_only else (maps[-1], taken)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last of ``indices``, and the head."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_head:
            self.reset_classifier(0)
        return take


class WaveMixSegmenter(WaveMixBackbone):
    """Classes for every pixel: two transposed convolutions to ``decoder`` channels, then a 1 x 1 convolution.

    The stem must divide the picture by 4 (``patch_size=4``, or a strided stem with ``stride=2``), which they undo.
    """

    def __init__(
        self,
        num_classes: int = 20,
        depth: int = 16,
        dim: int = 256,
        levels: int = 4,
        *,
        stem: Stem = "strided",
        decoder: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(depth, dim, levels, stem=stem, **options)
        reduction = self.feature_info[0]["reduction"]
        if reduction != 4:
            raise ValueError(
                f"patch_size or stride must divide the picture by 4, which the decoder undoes, got {reduction}"
            )
        first, second = decoder or (dim // 2, dim // 4)
        self.num_classes = num_classes
        self.head = nn.Sequential(
            nn.ConvTranspose2d(dim, first, 4, stride=2, padding=1),
            nn.ConvTranspose2d(first, second, 4, stride=2, padding=1),
            nn.Conv2d(second, num_classes, 1),
        )

    def forward(self, x: Float[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch classes height width"]:
        """Logits of each pixel; raises as :meth:`forward_features` does."""
        height, width = x.shape[-2:]
        # A strided stem rounds a side that 4 does not divide up.
        return self.head(self.forward_features(x))[..., :height, :width]


class WaveMixUpscaler(WaveMixBackbone):
    """Super-resolution by two: the picture's own resolution throughout, then one transposed convolution."""

    def __init__(self, depth: int = 4, dim: int = 144, levels: int = 1, *, in_chans: int = 3, **options: Any) -> None:
        super().__init__(depth, dim, levels, stem="strided", stride=1, in_chans=in_chans, **options)
        self.head = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, 4, stride=2, padding=1), nn.Conv2d(dim // 2, in_chans, 1)
        )

    def forward(
        self, x: Float[Tensor, "batch in_chans height width"]
    ) -> Float[Tensor, "batch in_chans 2*height 2*width"]:
        """The picture at twice the size; raises as :meth:`forward_features` does."""
        return self.head(self.forward_features(x))


def focal_loss(
    logits: Float[Tensor, "batch classes height width"], target: Tensor, gamma: float = 2.0, ignore: int = 255
) -> Tensor:
    """The segmenter's loss: cross-entropy of each pixel times (1 - its probability) ** gamma, mean of the pixels.

    The authors weigh the mean cross-entropy of a batch as a whole; here each pixel has its own weight, as the loss is
    defined (arXiv 1708.02002, equation 4). ``target`` is (batch, height, width); pixels of ``ignore`` do not count.
    """
    entropy = F.cross_entropy(logits, target, ignore_index=ignore, reduction="none")
    weighed = (1 - torch.exp(-entropy)) ** gamma * entropy
    return weighed.sum() / (target != ignore).sum().clamp(min=1)


# The published variants. Weights exist of all but the lite networks, the default segmenter and the upscaler.
_PATCH: dict[str, Any] = {"stem": "patch", "patch_size": 4}
_FULL: dict[str, Any] = {"stem": "strided", "stride": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "wavemix_imagenet_28m": {"num_classes": 1000, "dim": 192, "depth": 16, "levels": 3, **_PATCH},
    "wavemix_imagenet_12m": {"num_classes": 1000, "dim": 192, "depth": 16, "levels": 1, **_PATCH},
    "wavemix_imagenet_49m": {"num_classes": 1000, "dim": 256, "depth": 16, "levels": 3, **_PATCH},
    "wavemix_imagenet_63m": {
        "num_classes": 1000, "dim": 256, "depth": 16, "levels": 4, "stem": "strided", "stride": 2,
    },
    "wavemix_places365": {"num_classes": 365, "dim": 256, "depth": 12, "levels": 2, "stem": "patch", "patch_size": 8},
    "wavemix_cifar10_s": {"num_classes": 10, "dim": 144, "depth": 7, "levels": 1, **_FULL},
    "wavemix_cifar10_l": {"num_classes": 10, "dim": 320, "depth": 8, "levels": 1, **_FULL},
    "wavemix_cifar100_s": {"num_classes": 100, "dim": 256, "depth": 8, "levels": 1, **_FULL},
    "wavemix_cifar100_l": {"num_classes": 100, "dim": 256, "depth": 10, "levels": 1, **_FULL},
    "wavemix_tiny_imagenet": {"num_classes": 200, "dim": 256, "depth": 12, "levels": 1, **_FULL},
    "wavemix_tiny_imagenet_patch": {"num_classes": 200, "dim": 192, "depth": 16, "levels": 3, **_PATCH},
    "wavemix_galaxy10_1level": {"num_classes": 10, "dim": 192, "depth": 16, "levels": 1, **_PATCH},
    "wavemix_galaxy10_3levels": {"num_classes": 10, "dim": 192, "depth": 16, "levels": 3, **_PATCH},
    # For 99% on MNIST, 90% on Fashion-MNIST, 80% and 90% on CIFAR-10.
    "wavemix_lite_8_10": {
        "num_classes": 10, "dim": 8, "depth": 10, "levels": 1, "in_chans": 1, "upsample": "bilinear", **_FULL,
    },
    "wavemix_lite_8_5": {"num_classes": 10, "dim": 8, "depth": 5, "levels": 1, "in_chans": 1, **_FULL},
    "wavemix_lite_32_7": {"num_classes": 10, "dim": 32, "depth": 7, "levels": 1, "upsample": "bilinear", **_FULL},
    "wavemix_lite_64_6": {"num_classes": 10, "dim": 64, "depth": 6, "levels": 1, **_FULL},
    "wavemix_segmenter": {"num_classes": 20, "dim": 256, "depth": 16, "levels": 4, "stem": "strided", "stride": 2},
    "wavemix_cityscapes": {
        "num_classes": 20, "dim": 192, "depth": 16, "levels": 3, "decoder": (128, 64), **_PATCH,
    },
    "wavemix_upscaler_x2": {"dim": 144, "depth": 4, "levels": 1},
}  # fmt: skip


def network_of(variant: str) -> type[WaveMixBackbone]:
    """The class that builds ``variant``."""
    if variant in ("wavemix_segmenter", "wavemix_cityscapes"):
        return WaveMixSegmenter
    return WaveMixUpscaler if variant == "wavemix_upscaler_x2" else WaveMix


def _default_cfg(variant: str) -> dict[str, Any]:
    """timm's description of a variant; CIFAR's and ImageNet's statistics of colours as they are commonly used."""
    channels = VARIANTS[variant].get("in_chans", 3)
    cifar = "cifar" in variant or variant in ("wavemix_lite_32_7", "wavemix_lite_64_6")
    colours: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    if cifar:
        colours = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
    elif channels == 1:
        colours = {"mean": (0.1307,), "std": (0.3081,)}
    side = 224 if variant.startswith("wavemix_imagenet") else 256
    if variant == "wavemix_imagenet_63m":
        side = 256  # four levels after a stride of 4: sides are multiples of 64
    elif variant.startswith("wavemix_tiny"):
        side = 64
    elif cifar or channels == 1:
        side = 32 if cifar else 28
    return {
        "url": "",
        "num_classes": VARIANTS[variant].get("num_classes", 0),
        "input_size": (channels, side, side),
        "pool_size": None,
        "fixed_input_size": False,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "first_conv": "stem.0",
        "classifier": "head",
        **colours,
    }


default_cfgs = generate_default_cfgs({variant: _default_cfg(variant) for variant in VARIANTS})


def _weights(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """For timm's ``pretrained_cfg_overlay={"file": ...}``: the authors' names or ours."""
    return {ours_of(key, model): tensor for key, tensor in state.items()}


def ours_of(key: str, model: nn.Module) -> str:
    """Our name of one of the authors' keys in a state of ``model``'s kind; one of ours stays as it is.

    The classifier is pool.2 there, the decoder expand, but pool in the file for Cityscapes.
    """
    key = re.sub(r"^pool\.2\." if isinstance(model, WaveMix) else r"^(pool|expand)\.", "head.", key)
    key = re.sub(r"^conv\.", "stem.", key)
    key = re.sub(r"^layers\.(\d+)\.reduction\.", r"blocks.\1.reduce.", key)
    key = re.sub(r"^layers\.(\d+)\.feedforward\.", r"blocks.\1.mix.0.", key)
    return re.sub(
        r"^layers\.(\d+)\.feedforward([1-4])\.", lambda found: f"blocks.{found[1]}.mix.{int(found[2]) - 1}.", key
    )


def _register(variant: str) -> None:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        settings = {**VARIANTS[variant], **options}
        if network_of(variant) is not WaveMix and settings.get("features_only"):
            raise ValueError(
                f"features_only must be False for {variant}, which gives pictures; use a classifier's variant"
            )
        depth = settings["depth"]
        # All blocks share one resolution: by default the maps after each quarter of them.
        quarters = sorted({max(0, depth * part // 4 - 1) for part in range(1, 5)})
        return build_model_with_cfg(  # type: ignore[no-any-return]
            network_of(variant),
            variant,
            pretrained,
            pretrained_filter_fn=_weights,
            feature_cfg={"out_indices": quarters, "feature_cls": "getter"},
            # timm would hand its number of classes to a network that has none.
            kwargs_filter=("num_classes",) if network_of(variant) is WaveMixUpscaler else None,
            **settings,
        )

    build.__name__ = build.__qualname__ = variant
    build.__doc__ = f"{network_of(variant).__name__} with the settings of ``{variant}``."
    build.__module__ = __name__
    globals()[variant] = register_model(build)


__all__ = [
    "VARIANTS",
    "WaveMix",
    "WaveMixBackbone",
    "WaveMixBlock",
    "WaveMixSegmenter",
    "WaveMixUpscaler",
    "focal_loss",
]
for _variant in VARIANTS:
    _register(_variant)
