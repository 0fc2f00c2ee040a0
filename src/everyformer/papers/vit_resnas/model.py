"""ViT-ResNAS: vision transformers of several stages with residual reductions (arXiv 2109.00642, sections 3 and 4).

Patches of 14 x 14 pixels become tokens; between stages the grid halves and the width grows. A reduction normalises, then
convolves; around it runs a skip connection (average pooling, new channels zero), so that the sum over all blocks is
never interrupted. Sizes of every block differ and come from a search (:mod:`everyformer.papers.vit_resnas.search`).

A network is written down as a *definition*, the notation of the published configurations:

- ``(0, dim)``: linear patches; ``(4, dim)``: convolutional patches with 24 middle channels; ``(5, dim, middle)``
- ``(1, (dim, heads, head_dim), (dim, hidden), exists)``: a transformer block
- ``(3, dim_in, dim_out)``: a spatial reduction
- ``(2, dim, classes)``: the head
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

LINEAR, BLOCK, HEAD, REDUCTION, CONV, FLEXIBLE_CONV = range(6)
MIDDLE = 24  # middle channels of the published convolutional patches
Definition = tuple[tuple[Any, ...], ...]
Grid = tuple[int, int]


class Stage(NamedTuple):
    """A stage of a network: its width, the size of its heads, and (heads, hidden) of each block."""

    dim: int
    head_dim: int
    blocks: Sequence[tuple[int, int]]


def define(stages: Sequence[Stage], num_classes: int = 1000, middle: int | None = MIDDLE) -> Definition:
    """The definition of a network of ``stages``; ``middle`` as in :class:`ConvPatches`, ``None`` for linear patches."""
    width = stages[0].dim
    parts: list[tuple[Any, ...]] = [(LINEAR, width) if middle is None else (FLEXIBLE_CONV, width, middle)]
    for index, (dim, head_dim, blocks) in enumerate(stages):
        if index:
            parts.append((REDUCTION, stages[index - 1].dim, dim))
        parts += [(BLOCK, (dim, heads, head_dim), (dim, hidden), 1) for heads, hidden in blocks]
    return (*parts, (HEAD, stages[-1].dim, num_classes))


def checked(definition: Sequence[Any]) -> Definition:
    """The definition as tuples, with type 5 in place of type 4.

    Raises:
        ValueError: an unknown type code, parts out of order, sizes that disagree along the chain or a reduction to
            fewer channels; the position is named.
    """
    parts: Definition = _tuples(definition)
    if len(parts) < 2:
        raise ValueError(f"definition must have patches and a head at least, got {parts}")
    width = None
    for position, part in enumerate(parts):
        name = f"definition[{position}]"
        lengths = {LINEAR: 2, BLOCK: 4, HEAD: 3, REDUCTION: 3, CONV: 2, FLEXIBLE_CONV: 3}
        if not part or part[0] not in lengths:
            raise ValueError(f"{name} has an unknown type code: {part}; known are 0 to 5")
        kind = part[0]
        if len(part) != lengths[kind] or (kind == BLOCK and [len(part[1]), len(part[2])] != [3, 2]):
            raise ValueError(f"{name} has a wrong number of entries for type {kind}: {part}")
        if min(_leaves(part[1:3])) < (0 if kind == HEAD else 1):
            raise ValueError(f"{name} must have sizes of at least 1, got {part}")
        if (position == 0) != (kind in (LINEAR, CONV, FLEXIBLE_CONV)) or (position == len(parts) - 1) != (kind == HEAD):
            raise ValueError(f"{name} is out of place: patches come first, the head last, got {part}")
        taken = (part[1][0], part[2][0]) if kind == BLOCK else (part[1],)
        if width is not None and any(size != width for size in taken):
            raise ValueError(f"{name} must take the {width} channels of the part before, got {part}")
        if kind == REDUCTION and part[2] < part[1]:
            raise ValueError(f"{name} must not reduce the channels: from {part[1]} to {part[2]}")
        width = part[2] if kind == REDUCTION else taken[0]
    patches = (FLEXIBLE_CONV, parts[0][1], MIDDLE) if parts[0][0] == CONV else parts[0]
    return (patches, *parts[1:])


def stripped(definition: Sequence[Any]) -> Definition:
    """The definition without removed blocks, to train a network that was found from scratch."""
    return tuple(part for part in checked(definition) if part[0] != BLOCK or part[3])


def macs(definition: Sequence[Any], img_size: int = 224, patch: int = 14, tokens: int = 1, in_chans: int = 3) -> int:
    """Multiply-adds of one picture, by the count that bounds the search: no norms, biases or softmax.

    Args:
        definition: the network; removed blocks cost nothing.
        img_size, patch, in_chans: side of the picture, of a patch, and channels.
        tokens: 1, or 2 with a distillation token (whose head counts too).
    """
    parts = checked(definition)
    side = img_size // patch
    width = parts[0][1]
    if parts[0][0] == LINEAR:
        count = in_chans * patch**2 * width * side**2
    else:
        middle = parts[0][2]
        count = 9 * (in_chans * middle + 2 * middle**2) * (img_size // 2) ** 2
        count += (patch // 2) ** 2 * middle * width * side**2
    for part in parts[1:]:
        if part[0] == BLOCK and part[3]:
            length = side**2 + tokens
            (dim, heads, head_dim), (_, hidden), _ = part[1:]
            count += 4 * dim * heads * head_dim * length + 2 * length**2 * heads * head_dim + 2 * length * dim * hidden
        elif part[0] == REDUCTION:
            side //= 2
            count += (9 * side**2 + tokens) * part[1] * part[2]
        elif part[0] == HEAD:
            count += tokens * part[1] * part[2]
    return count


class MaskedLayerNorm(nn.LayerNorm):
    """Layer norm over the kept channels only (arXiv 2109.00642, section 4.2), with one set of weights for all widths.

    mu = sum(x) / k and sigma^2 = sum(m (x - mu)^2) / k over the k channels where the mask m is 1;
    y = m ((x - mu) / sqrt(sigma^2 + eps) * weight + bias). Masked channels of x must be 0. Without mask: layer norm.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps=eps)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], mask: Float[Tensor, "batch 1 dim"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Normalised tokens; ``mask`` holds ones and zeros. Computed in float32 at least."""
        if mask is None:
            return super().forward(x)
        mask = mask.to(torch.promote_types(x.dtype, torch.float32))
        kept = mask.sum(-1, keepdim=True)
        mean = x.sum(-1, keepdim=True, dtype=mask.dtype) / kept
        # With removed channels at the mean of the others, a layer norm over all has their mean and k / dim of their
        # variance: grown by so much, they come out as wanted, and one fused kernel does the work.
        grow = (x.shape[-1] / kept).sqrt()
        x_grown = torch.addcmul(x.to(mask.dtype), mean, 1 - mask) * grow
        normed = F.layer_norm(x_grown, self.normalized_shape, self.weight.to(mask.dtype), None, self.eps)
        return torch.addcmul(self.bias * mask, normed, mask / grow).to(x.dtype)


class BlockMasks(NamedTuple):
    """What of a block each example keeps, as ones and zeros of shape (batch, 1, channels)."""

    width: Float[Tensor, "batch 1 dim"]
    attention: Float[Tensor, "batch 1 inner"]
    hidden: Float[Tensor, "batch 1 hidden"]
    branch: Float[Tensor, "batch 1 dim"]


class Attention(nn.Module):
    """Attention whose heads have a size of their own, not ``dim / heads``.

    Rows of ``qkv`` are ordered by head, then query, key and value: its leading rows are those of the leading heads.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], mask: Float[Tensor, "batch 1 inner"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens to tokens; ``mask`` removes whole heads before the projection."""
        query, key, value = self.qkv(x).unflatten(-1, (self.heads, 3, self.head_dim)).transpose(1, 2).unbind(3)
        x = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.proj(x if mask is None else x * mask)


class FeedForward(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], mask: Float[Tensor, "batch 1 hidden"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens to tokens; ``mask`` removes hidden units."""
        x = F.gelu(self.fc1(x))
        return self.fc2(x if mask is None else x.mul_(mask))


class Block(nn.Module):
    """A transformer block: attention and feed-forward part, each normalised before and added after.

    Args:
        dim: width of the tokens.
        heads, head_dim: number of heads and their size.
        hidden: width inside the feed-forward part.
        drop_path: chance of dropping a branch in training.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, hidden: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = MaskedLayerNorm(dim)
        self.attention = Attention(dim, heads, head_dim)
        self.norm2 = MaskedLayerNorm(dim)
        self.mlp = FeedForward(dim, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], masks: BlockMasks | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens to tokens. With ``masks`` each example passes through a smaller block of its own."""
        if masks is None:
            x = x + self.drop_path(self.attention(self.norm1(x)))
            return x + self.drop_path(self.mlp(self.norm2(x)))
        # The biases of proj and fc2 would leak into removed channels.
        branch = self.attention(self.norm1(x, masks.width), masks.attention)
        x = torch.addcmul(x, self.drop_path(branch), masks.branch)
        branch = self.mlp(self.norm2(x, masks.width), masks.hidden)
        return torch.addcmul(x, self.drop_path(branch), masks.branch)


class ResidualSpatialReduction(nn.Module):
    """Half the grid's side and more channels, with a skip connection around (arXiv 2109.00642, section 3.2).

    z = LN(x). Patches: conv3x3, stride 2, of z plus positions; extra tokens: a linear map of z. The skip adds the
    un-normalised patches, averaged over 2 x 2, and the extra tokens as they are, both with zeros as new channels.

    Args:
        dim_in, dim_out: channels before and after, not fewer after.
        grid: rows and columns of the patches before, even numbers.
        tokens: extra tokens in front of the patches.
        residual: without it the skip is left out, for comparisons.

    Raises:
        ValueError: fewer channels after than before, an odd grid.
    """

    def __init__(self, dim_in: int, dim_out: int, grid: Grid, tokens: int = 1, residual: bool = True) -> None:
        super().__init__()
        if dim_out < dim_in:
            raise ValueError(f"dim_out must be at least dim_in, got {dim_out} and {dim_in}")
        if grid[0] % 2 or grid[1] % 2:
            raise ValueError(f"grid must have even sides, got {grid}")
        self.tokens = tokens
        self.residual = residual
        self.grid = grid
        self.norm = MaskedLayerNorm(dim_in)
        self.conv = nn.Conv2d(dim_in, dim_out, 3, stride=2, padding=1)
        self.token_proj = nn.Linear(dim_in, dim_out)
        self.positions = nn.Parameter(torch.zeros(1, grid[0] * grid[1] // 4, dim_out))
        _fill(self.positions)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim_in"],
        grid: Grid | None = None,
        mask: Float[Tensor, "batch 1 dim_in"] | None = None,
    ) -> Float[Tensor, "batch fewer dim_out"]:
        """Extra tokens and patches to as many extra tokens and a quarter of the patches.

        Args:
            grid: rows and columns of the patches where they differ from the module's; positions are interpolated.
            mask: channels of x that are kept, for :class:`MaskedLayerNorm`.

        Raises:
            ValueError: another number of tokens than ``tokens`` and the grid.
        """
        grid = grid or self.grid
        if x.shape[1] != self.tokens + grid[0] * grid[1]:
            raise ValueError(f"x must hold {self.tokens} + {grid[0]} x {grid[1]} tokens, got {x.shape[1]}")
        z = self.norm(x, mask)
        half = (grid[0] // 2, grid[1] // 2)
        patches = self.conv(as_map(z[:, self.tokens :], grid)).flatten(2).transpose(1, 2)
        patches = patches + resampled(self.positions, (self.grid[0] // 2, self.grid[1] // 2), half)
        out = torch.cat([self.token_proj(z[:, : self.tokens]), patches], dim=1)
        if self.residual:
            pooled = F.avg_pool2d(as_map(x[:, self.tokens :], grid), 2).flatten(2).transpose(1, 2)
            skip = torch.cat([x[:, : self.tokens], pooled], dim=1)
            out = out + F.pad(skip, (0, out.shape[2] - skip.shape[2]))
        return out


class ConvPatches(nn.Module):
    """Pictures to a map of patches: a stem of three 3 x 3 convolutions with an inner skip, then one over each patch."""

    def __init__(self, in_chans: int, dim: int, patch: int = 14, middle: int = MIDDLE) -> None:
        super().__init__()
        if patch % 2:
            raise ValueError(f"patch must be even for convolutional patches, got {patch}")
        self.first = ConvNorm(in_chans, middle, stride=2)
        self.rest = nn.Sequential(ConvNorm(middle, middle), ConvNorm(middle, middle))
        self.proj = nn.Conv2d(middle, dim, patch // 2, patch // 2)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """Pictures to a map."""
        x = self.first(x)
        return self.proj(x + self.rest(x))


class ConvNorm(nn.Sequential):
    """A 3 x 3 convolution without bias, batch norm and ReLU."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
        )


class StageBlocks(nn.Module):
    """A stage: a reduction, in all stages but the first, and blocks; a removed block passes its tokens on."""

    def __init__(self, reduction: ResidualSpatialReduction | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.reduction = reduction
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self, x: Float[Tensor, "batch tokens dim_in"], grid: Grid
    ) -> tuple[Float[Tensor, "batch fewer dim"], Grid]:
        """Tokens and the grid of their patches to tokens and their grid."""
        if self.reduction is not None:
            x, grid = self.reduction(x, grid), (grid[0] // 2, grid[1] // 2)
        for block in self.blocks:
            x = block(x)
        return x, grid


class ViTResNAS(nn.Module):
    """The network: patches, extra tokens and positions, stages, a norm, and a linear head on the first token.

    Args:
        definition: the network in the notation at the top; or instead
        stages: its stages, with ``middle`` channels in the patches' stem (``None``: linear patches).
        num_classes: classes, 0 for none; the definition's own by default.
        img_size: the pictures for which positions are built; for others they are interpolated (bicubic).
        in_chans: channels of a picture.
        patch: side of a patch.
        distilled: a second token with a head of its own; the network returns both logits.
        patch_output: in training, return also the logits of every patch of the last stage.
        residual: with the skip around the reductions.
        drop_path_rate: chance of dropping a branch, growing linearly from 0 to this over the blocks (removed ones count).

    Raises:
        ValueError: a definition that is not consistent (the position is named), a size that does not divide.
    """

    def __init__(
        self,
        definition: Sequence[Any] | None = None,
        *,
        stages: Sequence[Stage] | None = None,
        middle: int | None = MIDDLE,
        num_classes: int | None = None,
        img_size: int | Grid = 224,
        in_chans: int = 3,
        patch: int = 14,
        distilled: bool = False,
        patch_output: bool = False,
        residual: bool = True,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if stages is not None and definition is None:
            definition = define(stages, middle=middle)
        elif stages is not None or definition is None:
            raise ValueError("definition or stages must be given, and not both")
        if distilled and patch_output:
            raise ValueError("patch_output must be False with distilled: patches have no teacher")
        self.definition = checked(definition)
        parts = self.definition
        self.num_classes = parts[-1][2] if num_classes is None else num_classes
        self.num_features = self.head_hidden_size = parts[-1][1]
        self.in_chans, self.patch = in_chans, patch
        self.tokens_in_front = 2 if distilled else 1
        self.distilled, self.patch_output = distilled, patch_output
        self.total_stride = patch * 2 ** sum(part[0] == REDUCTION for part in parts)
        self.grid = grid = self._grid(img_size)

        width = parts[0][1]
        if parts[0][0] == LINEAR:
            self.patches: nn.Module = nn.Conv2d(in_chans, width, patch, patch)
        else:
            self.patches = ConvPatches(in_chans, width, patch, parts[0][2])
        self.tokens = nn.Parameter(torch.zeros(1, self.tokens_in_front, width))
        self.positions = nn.Parameter(torch.zeros(1, self.tokens_in_front + grid[0] * grid[1], width))
        _fill(self.tokens)
        _fill(self.positions)

        depth = sum(part[0] == BLOCK for part in parts)
        rates = iter([drop_path_rate * index / max(1, depth - 1) for index in range(depth)])
        self.stages = nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        stride, reduction, blocks = patch, None, []
        for part in parts[1:]:
            if part[0] == BLOCK:
                rate = next(rates)
                _, (dim, heads, head_dim), (_, hidden), exists = part
                blocks.append(Block(dim, heads, head_dim, hidden, rate) if exists else nn.Identity())
                continue
            name = f"stages.{len(self.stages)}"
            self.feature_info.append({"num_chs": part[1], "reduction": stride, "module": name})
            self.stages.append(StageBlocks(reduction, blocks))
            if part[0] == REDUCTION:
                reduction = ResidualSpatialReduction(part[1], part[2], grid, self.tokens_in_front, residual)
                grid, stride, blocks = (grid[0] // 2, grid[1] // 2), 2 * stride, []
        self.norm = MaskedLayerNorm(self.num_features)
        self.apply(_start)
        self._make_heads()

    def embed(self, x: Float[Tensor, "batch channels height width"]) -> tuple[Float[Tensor, "batch tokens dim"], Grid]:
        """Pictures to tokens with positions, and the grid of the patches.

        Raises:
            ValueError: other channels than the network's, sides that are not multiples of the total stride.
        """
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"x must have shape (batch, {self.in_chans}, height, width), got {tuple(x.shape)}")
        grid = self._grid((x.shape[2], x.shape[3]), "x")
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], dim=1)
        return x + self._positions(grid), grid

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Pictures to the normalised tokens of the last stage, extra tokens first."""
        x, grid = self.embed(x)
        for stage in self.stages:
            x, grid = stage(x, grid)
        return self.norm(x)

    def forward_head(self, x: Float[Tensor, "batch tokens dim"], pre_logits: bool = False) -> Any:
        """Tokens to logits, see :meth:`forward`; with ``pre_logits`` to what the head sees."""
        if pre_logits:
            return x[:, 0]
        logits = self.head(x[:, 0])
        if self.distilled:
            return logits, self.distill_head(x[:, 1])
        if self.patch_output and self.training:
            return logits, self.patch_head(x[:, self.tokens_in_front :])
        return logits

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Any:
        """Pictures to logits (batch, classes).

        With ``distilled`` a pair: those of the first and of the second token. With ``patch_output``, in training, a pair:
        logits, and those of the patches (batch, patches, classes).

        Raises:
            ValueError: other channels than the network's, sides that are not multiples of the total stride.
        """
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Float[Tensor, "batch channels height width"],
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of the patches at the ends of stages, as timm's ``features_only`` asks for.

        Args:
            indices: which stages, or the last so many; all by default.
            norm: apply the final norm to the last stage's map.
            stop_early: leave later stages out.
            output_fmt: ``"NCHW"``, or ``"NLC"`` for tokens without the extra ones.
            intermediates_only: maps alone; otherwise the normalised tokens too, first.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        count = len(self.stages)
        every = range(count)
        wanted = every if indices is None else every[-indices:] if isinstance(indices, int) else indices
        chosen = [every[index] for index in wanted]
        x, grid = self.embed(x)
        maps = {}
        for index, stage in enumerate(self.stages):
            x, grid = stage(x, grid)
            if index in chosen:
                found = self.norm(x) if norm and index == count - 1 else x
                found = found[:, self.tokens_in_front :]
                maps[index] = as_map(found, grid) if output_fmt == "NCHW" else found
            if stop_early and index == max(chosen):
                break
        features = [maps[index] for index in chosen]
        return features if intermediates_only else (self.norm(x), features)

    def set_input_size(self, img_size: int | Grid) -> None:
        """Interpolate all tables of positions for pictures of ``img_size``, to fine-tune at a higher resolution."""
        grid = self._grid(img_size)
        self.positions = nn.Parameter(self._positions(grid).detach().clone())
        self.grid = grid
        stages: Any = self.stages
        for stage in stages[1:]:
            reduction = stage.reduction
            old, new = ((side[0] // 2, side[1] // 2) for side in (reduction.grid, grid))
            reduction.positions = nn.Parameter(resampled(reduction.positions, old, new).detach().clone())
            reduction.grid, grid = grid, new

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New heads for ``num_classes``, 0 for none; ``global_pool`` can only be ``"token"``."""
        if global_pool not in (None, "token"):
            raise ValueError(f"global_pool must be 'token', got {global_pool!r}")
        self.num_classes = num_classes
        self._make_heads()

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone."""
        return {"tokens"}

    def _make_heads(self) -> None:
        def head() -> nn.Module:
            if not self.num_classes:
                return nn.Identity()
            linear = nn.Linear(self.num_features, self.num_classes)
            _start(linear)
            return linear.to(self.norm.weight.device, self.norm.weight.dtype)

        self.head = head()
        if self.distilled:
            self.distill_head = head()
        if self.patch_output:
            self.patch_head = head()

    def _grid(self, size: int | Grid, name: str = "img_size") -> Grid:
        height, width = (size, size) if isinstance(size, int) else size
        if height % self.total_stride or width % self.total_stride or min(height, width) < self.total_stride:
            raise ValueError(
                f"{name} must have sides that are multiples of {self.total_stride}, got ({height}, {width})"
            )
        return (height // self.patch, width // self.patch)

    def _positions(self, grid: Grid) -> Float[Tensor, "1 tokens dim"]:
        if grid == self.grid:
            return self.positions
        front, patches = self.positions.tensor_split([self.tokens_in_front], dim=1)
        return torch.cat([front, resampled(patches, self.grid, grid)], dim=1)


def resampled(table: Float[Tensor, "1 patches dim"], built: Grid, grid: Grid) -> Float[Tensor, "1 others dim"]:
    """Positions on another grid, bicubic without aligned corners."""
    if built == grid:
        return table
    maps = F.interpolate(as_map(table, built).float(), size=grid, mode="bicubic", align_corners=False)
    return maps.flatten(2).transpose(1, 2).to(table.dtype)


def as_map(x: Float[Tensor, "batch patches dim"], grid: Grid) -> Float[Tensor, "batch dim rows columns"]:
    """Patches as a map."""
    return x.transpose(1, 2).unflatten(2, grid)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


def _leaves(value: Any) -> list[int]:
    return [leaf for entry in value for leaf in _leaves(entry)] if isinstance(value, tuple) else [value]


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        _fill(module.weight)
        nn.init.zeros_(module.bias)


def _fill(tensor: Tensor) -> None:
    # Without data there is nothing to fill, and going through the motions is most of the time of building a network.
    if not tensor.is_meta:
        trunc_normal_(tensor, std=0.02)


def _same(dim: int, head_dim: int, depth: int) -> Stage:
    return Stage(dim, head_dim, [(dim // head_dim, 4 * dim)] * depth)


# The published networks, (heads, hidden) of each block. ``vit_res_tiny`` is the one made by hand.
VARIANTS: dict[str, tuple[Stage, ...]] = {
    "vit_res_tiny": (_same(192, 64, 4), _same(384, 64, 4), _same(768, 64, 4)),
    "vit_resnas_tiny": (
        Stage(176, 32, [(3, 704), (3, 576), (3, 640), (4, 576), (4, 704)]),
        Stage(352, 48, [(10, 1408), (8, 1408), (8, 1280), (8, 1408), (10, 1280), (10, 1024)]),
        Stage(704, 64, [(10, 2560), (10, 1792), (10, 2816), (8, 2816), (8, 2560)]),
    ),
    "vit_resnas_small": (
        Stage(220, 32, [(5, 880), (5, 880), (7, 800), (5, 720), (5, 720), (5, 720)]),
        Stage(440, 48, [(10, 1760), (10, 1440), (10, 1920), (10, 1600), (12, 1600), (12, 1440)]),
        Stage(880, 64, [(16, 3200), (12, 3200), (16, 2880), (12, 2240), (14, 2560)]),
    ),
    "vit_resnas_medium": (
        Stage(240, 32, [(7, 960), (6, 960), (7, 800), (8, 960), (7, 880), (8, 880), (6, 800)]),
        Stage(640, 48, [(10, 1120), (14, 1760), (14, 1920), (16, 1760), (14, 1440), (16, 1760), (16, 1920)]),
        Stage(880, 64, [(16, 3200), (10, 3840), (16, 3840), (12, 3200), (16, 3520), (14, 3520)]),
    ),
}

CONFIG: dict[str, Any] = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": None,
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "patches.first.0",
    "classifier": "head",
    "license": "cc-by-nc-4.0",
}

# register_model reads these by name.
default_cfgs = generate_default_cfgs(dict.fromkeys(VARIANTS, CONFIG))


def _build(variant: str, pretrained: bool, options: dict[str, Any]) -> ViTResNAS:
    settings = {"stages": VARIANTS[variant], **options}
    return build_model_with_cfg(  # type: ignore[no-any-return]
        ViTResNAS, variant, pretrained, feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"}, **settings
    )


@register_model
def vit_res_tiny(pretrained: bool = False, **options: Any) -> ViTResNAS:
    """The network made by hand: 42.0M parameters, 1.79G multiply-adds."""
    return _build("vit_res_tiny", pretrained, options)


@register_model
def vit_resnas_tiny(pretrained: bool = False, **options: Any) -> ViTResNAS:
    """The network found for 1.8G multiply-adds: 40.8M parameters."""
    return _build("vit_resnas_tiny", pretrained, options)


@register_model
def vit_resnas_small(pretrained: bool = False, **options: Any) -> ViTResNAS:
    """The network found for 2.9G multiply-adds: 63.7M parameters."""
    return _build("vit_resnas_small", pretrained, options)


@register_model
def vit_resnas_medium(pretrained: bool = False, **options: Any) -> ViTResNAS:
    """The network found for 4.6G multiply-adds: 96.4M parameters."""
    return _build("vit_resnas_medium", pretrained, options)
