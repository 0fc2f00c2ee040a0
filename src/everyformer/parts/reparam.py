"""Structural reparameterisation: many branches in training, one convolution in deployment (after arXiv 2101.03697).

In evaluation a batch norm is a scale and a shift for each channel, so a convolution with its norm is a convolution with
bias; branches that read the same input add up to one kernel, after small kernels are padded, groups widened to common
ones and the identity written as a kernel. Everything is exact up to rounding; sums are taken in float64.

``timm.utils.reparameterize_model`` finds the ``reparameterize`` methods here as it does those of timm's own networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def reparameterize(model: Module) -> Module:
    """Fold, in place, everything inside ``model`` that can be folded; returns the model.

    What was trained stays in the running statistics of the batch norms: outputs are those of evaluation.
    """
    parts: list[Any] = list(model.modules())
    for module in parts:
        if module is not model and hasattr(module, "reparameterize"):
            module.reparameterize()
    return model


class RepConv2d(nn.Module):
    """A convolution of several branches, each with a batch norm, that folds into a single one.

    Branches, summed: one ``kernel`` x ``kernel`` convolution for each entry of ``groups``; a 1 x 1 convolution where the
    kernel is larger; the input itself where it has the output's shape. The folded convolution has as many groups as all
    branches allow: the greatest common divisor.

    Args:
        inside, outside: channels.
        kernel: odd side of the kernel; the padding keeps the size.
        stride: of the output.
        groups: groups of each branch; an entry may occur more than once.
        residual: whether the input is added once more, without a norm; this folds too.
        drop: what the branches' sum passes in training before the residual is added, such as timm's ``DropPath``.

    Raises:
        ValueError: an even kernel, groups that do not divide the channels, a residual between different shapes.
    """

    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: int = 1,
        stride: int = 1,
        groups: Sequence[int] = (1,),
        residual: bool = False,
        drop: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        if not groups or any(count < 1 or inside % count or outside % count for count in groups):
            raise ValueError(f"groups must divide inside={inside} and outside={outside}, got {tuple(groups)}")
        same = inside == outside and stride == 1
        if residual and not same:
            raise ValueError(f"residual needs equal shapes, got {inside} to {outside} channels with stride {stride}")
        self.inside, self.outside, self.kernel, self.stride = inside, outside, kernel, stride
        self.groups = math.gcd(*groups)
        self.residual = residual
        self.drop = nn.Identity() if drop is None else drop
        branches: list[nn.Module] = [self._branch(kernel, count) for count in groups]
        if kernel > 1:
            branches.append(self._branch(1, self.groups))
        if same:
            branches.append(nn.BatchNorm2d(outside))
        self.branches = nn.ModuleList(branches)
        self.conv: nn.Conv2d | None = None

    def _branch(self, kernel: int, groups: int) -> nn.Sequential:
        conv = nn.Conv2d(self.inside, self.outside, kernel, self.stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(self.outside))

    def forward(self, x: Float[Tensor, "batch inside height width"]) -> Float[Tensor, "batch outside rows columns"]:
        """A map to a map, of 1/``stride`` the size (rounded up)."""
        if self.conv is not None:
            return self.conv(x)  # type: ignore[no-any-return]
        first, *rest = self.branches
        out = first(x)
        for branch in rest:
            out = out + branch(x)
        return x + self.drop(out) if self.residual else out  # type: ignore[no-any-return]

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Replace the branches, in place, by ``conv``; a second call does nothing."""
        if self.conv is not None:
            return
        like = next(self.branches.parameters())
        identity = torch.zeros(
            self.outside, self.inside // self.groups, self.kernel, self.kernel, dtype=torch.float64, device=like.device
        )
        if self.inside == self.outside:
            nn.init.dirac_(identity, self.groups)
        weight = identity if self.residual else torch.zeros_like(identity)
        bias = torch.zeros(self.outside, dtype=torch.float64, device=like.device)
        branches: list[Any] = list(self.branches)
        for branch in branches:
            if isinstance(branch, nn.Sequential):
                conv: Any
                norm: Any
                conv, norm = branch
                kernel = regrouped(conv.weight.double(), conv.groups, self.groups)
                kernel = F.pad(kernel, [(self.kernel - conv.kernel_size[0]) // 2] * 4)
            else:
                norm, kernel = branch, identity
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            weight = weight + kernel * scale[:, None, None, None]
            bias = bias + norm.bias.double() - norm.running_mean.double() * scale
        self.conv = _conv(weight, bias, self.stride, self.groups, like)
        del self.branches, self.drop


def regrouped(weight: Float[Tensor, "out inside k k"], groups: int, fewer: int) -> Float[Tensor, "out wider k k"]:
    """The kernel of a convolution with ``groups`` groups, for ``fewer`` groups that divide them: zeros are put between.

    Raises:
        ValueError: ``fewer`` does not divide ``groups``.
    """
    if groups % fewer:
        raise ValueError(f"fewer must divide groups={groups}, got {fewer}")
    parts = groups // fewer
    diagonal = torch.eye(parts, dtype=weight.dtype, device=weight.device)
    split = weight.unflatten(0, (fewer, parts, -1))  # fewer, part, out, inside, k, k
    spread = split[:, :, :, None] * diagonal[None, :, None, :, None, None, None]
    return spread.flatten(3, 4).flatten(0, 2)


@torch.no_grad()
def chained(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """One 1 x 1 convolution for two in a row: ``second`` of ``first`` on the leading channels, the others as they are.

    ``first`` makes as many channels as it reads or, where it makes all that ``second`` reads, any number.

    Raises:
        ValueError: a convolution that is not a plain 1 x 1 one, or channels that do not fit.
    """
    for name, conv in (("first", first), ("second", second)):
        if conv.kernel_size != (1, 1) or conv.stride != (1, 1) or conv.groups != 1 or conv.bias is None:
            raise ValueError(f"{name} must be a 1 x 1 convolution with bias, one group and stride 1, got {conv}")
    led = first.out_channels
    if led > second.in_channels:
        raise ValueError(f"second must read the {led} channels of first, got {second.in_channels}")
    outer, inner = second.weight.double().flatten(1), first.weight.double().flatten(1)
    assert first.bias is not None and second.bias is not None
    bias = second.bias.double() + outer[:, :led] @ first.bias.double()
    weight = torch.cat([outer[:, :led] @ inner, outer[:, led:]], dim=1)
    return _conv(weight[:, :, None, None], bias, 1, 1, second.weight)


def _conv(weight: Tensor, bias: Tensor, stride: int, groups: int, like: Tensor) -> nn.Conv2d:
    """A convolution of these weights that keeps the size, with the type and place of ``like``."""
    outside, per_group, kernel, _ = weight.shape
    conv = nn.Conv2d(
        per_group * groups, outside, kernel, stride, kernel // 2, groups=groups, device=like.device, dtype=like.dtype
    )
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)  # type: ignore[union-attr]
    return conv
