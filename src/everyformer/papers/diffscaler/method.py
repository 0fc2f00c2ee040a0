"""The parameters that a data set adds to each layer of a frozen diffusion model (Diffscaler, arXiv 2404.09976).

At a layer that gives ``W x + b`` a task has a scale and a shift, by which it uses the subspace that the layer has learned,
and two thin matrices, which add a subspace of its own: ``scale * (W x + b) + shift + up @ down @ x``. Norms have the scale
and the shift alone. The embedding of the condition is new. At the start all of it changes nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.LayerNorm, nn.GroupNorm)
ADAPTABLE = (nn.Linear, *CONVOLUTIONS, *NORMS, nn.Embedding)


class Affiner(nn.Module):
    """One task at one linear layer, convolution or norm: ``scale * layer(x) + shift + up @ down @ x``.

    Args:
        layer: gives the sizes; it is neither kept nor changed.
        rank: of ``up @ down``, which a norm and a convolution in groups do not have; 0 leaves scale and shift.

    Raises:
        ValueError: ``rank`` below 0, or a layer of another kind.
    """

    def __init__(self, layer: nn.Module, *, rank: int = 4) -> None:
        super().__init__()
        if rank < 0:
            raise ValueError(f"rank must be at least 0, got {rank}")
        if not isinstance(layer, (nn.Linear, *CONVOLUTIONS, *NORMS)):
            raise ValueError(
                f"layer must be linear, a convolution, a LayerNorm or a GroupNorm, got {type(layer).__name__}"
            )
        self.scale = nn.Parameter(torch.ones(_outputs(layer)))
        self.shift = nn.Parameter(torch.zeros(_outputs(layer)))
        if rank and _takes_rank(layer):
            self.down = nn.Parameter(torch.empty(rank, *layer.weight.shape[1:]))  # type: ignore[union-attr, misc]
            self.up = nn.Parameter(torch.zeros(len(layer.weight), rank))  # type: ignore[arg-type]
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, layer: Any, x: Float[Tensor, "..."], y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What the task has in place of ``y``, which is what the layer gives for ``x``."""
        dtype = self.scale.dtype
        scale, shift = (self._along(parameter, layer, y) for parameter in (self.scale, self.shift))
        out = torch.addcmul(shift, scale, y.to(dtype))
        if hasattr(self, "up"):
            x = x.to(dtype)
            if isinstance(layer, nn.Linear):
                out = out + F.linear(F.linear(x, self.down), self.up)
            else:
                # The layer's own stride, padding and dilation.
                inner = layer._conv_forward(x, self.down, None)
                out = out + torch.einsum("or,br...->bo...", self.up, inner)
        return out.to(y.dtype)

    def folded(self, layer: Any) -> tuple[Tensor, Tensor]:
        """The weight and the bias with which the layer alone gives what :meth:`forward` gives."""
        scale = self.scale
        if isinstance(layer, NORMS):
            weight = scale if layer.weight is None else scale * layer.weight.to(scale.dtype)
        else:
            weight = scale.reshape(-1, *[1] * (layer.weight.dim() - 1)) * layer.weight.to(scale.dtype)
            if hasattr(self, "up"):
                weight = weight + (self.up @ self.down.flatten(1)).view_as(weight)
        bias = self.shift if layer.bias is None else scale * layer.bias.to(scale.dtype) + self.shift
        like = self.scale.dtype if layer.weight is None else layer.weight.dtype
        return weight.detach().to(like, copy=True), bias.detach().to(like, copy=True)

    @staticmethod
    def _along(parameter: Tensor, layer: nn.Module, y: Tensor) -> Tensor:
        """A parameter with its channels where the output has them: second, or last."""
        if isinstance(layer, (*CONVOLUTIONS, nn.GroupNorm)):
            return parameter.reshape(-1, *[1] * (y.dim() - 2))
        return parameter


class Condition(nn.Module):
    """One task's embedding of its classes, in place of the table of a frozen embedding.

    Args:
        layer: the embedding; its last row stands for "no class", as in a DiT.
        classes: how many the task has. Their rows start as the one of no class. ``None`` keeps the table's size and
            starts with its rows.

    Raises:
        ValueError: ``classes`` below 1, or more than the embedding has besides its last row.
    """

    def __init__(self, layer: nn.Embedding, *, classes: int | None = None) -> None:
        super().__init__()
        check_classes(layer, classes)
        old = layer.weight.detach()
        self.table = nn.Parameter((old if classes is None else old[-1:].expand(classes + 1, -1)).clone())

    def forward(self, layer: nn.Embedding, x: Int[Tensor, "*shape"], y: Tensor) -> Float[Tensor, "*shape dim"]:
        """The task's rows of the labels ``x``; ``y``, the layer's own, only says the type."""
        last = layer.num_embeddings - 1
        return F.embedding(torch.where(x == last, len(self.table) - 1, x), self.table).to(y.dtype)

    def folded(self, layer: nn.Embedding) -> tuple[Tensor, None]:
        """The layer's table with the task's rows in it."""
        table = layer.weight.detach().clone()
        table[: len(self.table) - 1] = self.table[:-1].detach().to(table.dtype)
        table[-1] = self.table[-1].detach().to(table.dtype)
        return table, None


def check_classes(layer: nn.Embedding, classes: int | None) -> None:
    """Raise the ValueError of :class:`Condition`."""
    known = layer.num_embeddings - 1
    if classes is not None and not 1 <= classes <= known:
        raise ValueError(f"classes must be between 1 and {known}, as many as the embedding has, got {classes}")


def _takes_rank(layer: Any) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, CONVOLUTIONS) and layer.groups == 1)


def _outputs(layer: Any) -> tuple[int, ...]:
    """The shape of a scale for every output."""
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape
    return (layer.num_channels if isinstance(layer, nn.GroupNorm) else len(layer.weight),)
