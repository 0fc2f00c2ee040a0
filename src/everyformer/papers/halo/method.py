"""HALO: linear layers whose three products are of rotated and rounded matrices (arXiv 2501.02625).

A layer with weight W computes Y = X W^T, and from the gradient E of Y those of its input and weight, G_X = E W and
G_W = E^T X. Outliers along a few channels of X, or along a few tokens of E, take a rounded matrix's range from all other
values. An orthogonal Hadamard matrix H spreads them out, and what it does to a product can be undone or cancels:

===== ================= ========================== ==================
level Y                 G_X                        G_W
===== ================= ========================== ==================
0     X W^T             E W                        E^T X
1     (X H^T) (W H^T)^T (E (W H^T)) H              (E^T (X H^T)) H
2     (X H^T) (W H^T)^T (H^T ((H E) (W H^T))) H    (E^T (X H^T)) H
===== ================= ========================== ==================

Each factor is rounded with one scale, so that X H^T and W H^T, rounded once, serve in all products: they are what is
saved for the backward pass, instead of X and W.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from everyformer.ops.hadamard import hadamard, has_hadamard
from everyformer.ops.scaled_matmul import check_format, quantise, scaled_matmul
from everyformer.papers.halo.sharding import GatheredWeight, ShardedWeight

LEVELS = (0, 1, 2)
Rounded = tuple[Shaped[Tensor, "rows columns"], Float[Tensor, ""]]


def convert(model: nn.Module, *, level: int = 2, format: str = "int8", skip: Sequence[str] = ("lm_head",)) -> nn.Module:
    """Let every ``nn.Linear`` of a model compute in few bits, in place; parameters and state dict stay as they are.

    Other classes are left alone, subclasses of ``nn.Linear`` too.

    Args:
        model: any module tree.
        level: 0 rounds only; 1 rotates along the channels; 2 rotates the errors along the tokens as well.
        format: ``"int8"``, ``"fp8"`` or ``"fp6"``.
        skip: modules to leave alone with all they hold, by a part of their dotted name.

    Returns:
        The same model.

    Raises:
        ValueError: an unknown level or format, a format that the weights' device cannot hold, a model that has been
            converted before or has nothing to convert, or (but at level 0) a layer with so many inputs that there is no
            Hadamard matrix of that order.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(map(str, LEVELS))}, got {level!r}")
    chosen = []
    for name, module in model.named_modules():
        if isinstance(module, HaloLinear):
            raise ValueError(f"model must not have been converted before, got a HaloLinear in {name or 'its place'}")
        if type(module) is nn.Linear and not set(skip) & set(name.split(".")):
            check_format(format, module.weight.device)
            if level:
                _check_order(name, module.in_features)
            chosen.append(module)
    if not chosen:
        raise ValueError(f"model must hold an nn.Linear outside of skip {tuple(skip)}, got {type(model).__name__}")
    for module in chosen:
        module.__class__ = HaloLinear
        vars(module).update(level=level, format=format, kept=None)
    return model


def _check_order(name: str, inputs: int) -> None:
    try:
        hadamard(torch.empty(0, inputs))
    except ValueError as error:
        raise ValueError(f"{name} has {inputs} inputs: {error}; or leave it out by skip, or take level 0") from error


def gather_rounded(model: nn.Module) -> nn.Module:
    """Prepare a converted model for ``fully_shard``: its layers' weights are then gathered in a byte for each value.

    Call it before ``fully_shard``. The shards stay in full precision, and the state dict holds plain tensors.

    Raises:
        ValueError: the model holds no converted layer, or was prepared before.
    """
    layers = [module for module in model.modules() if isinstance(module, HaloLinear)]
    if not layers:
        raise ValueError(f"model must be converted first, got {type(model).__name__} without a HaloLinear")
    if any(isinstance(layer.weight, ShardedWeight) for layer in layers):
        raise ValueError("model must not have been prepared before, got weights that are a ShardedWeight")
    for layer in layers:
        shared = ShardedWeight(layer.weight.data, layer.level > 0, layer.format)
        layer.weight = nn.Parameter(shared, requires_grad=layer.weight.requires_grad)
        layer.register_state_dict_post_hook(_plain_state)
    return model


def _plain_state(layer: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """The full-precision rows themselves in the state dict, which any process and any model can load."""
    from torch.distributed.tensor import DTensor

    weight: Any = state[prefix + "weight"]
    if isinstance(weight, DTensor):
        rows: Any = weight.to_local()
        state[prefix + "weight"] = DTensor.from_local(
            rows.master, weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride()
        )  # fmt: skip
    else:
        state[prefix + "weight"] = weight.master


class HaloLinear(nn.Linear):
    """A linear layer whose products are of rounded matrices; made by :func:`convert`.

    A weight that needs no gradient is rounded once, at the first step in training mode, until its tensor changes or the
    layer goes to evaluation mode; writes through ``weight.data`` are not noticed before that.
    """

    level: int
    format: str
    kept: tuple[tuple[int, int], Rounded] | None

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """x W^T + b; under autocast in its type."""
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        rounded = _rounded_input(x, dtype, self.level, self.format)
        out = _Product.apply(x, self.weight, *rounded, *self.rounded_weight(), self.level, self.format, dtype)
        return out if self.bias is None else out + self.bias.to(dtype)  # type: ignore[no-any-return]

    def rounded_weight(self) -> Rounded:
        """W H^T (at level 0, W), rounded."""
        weight = self.weight
        if isinstance(weight, GatheredWeight):
            return weight.rounded, weight.scale
        if weight.requires_grad or not self.training or torch.compiler.is_compiling():
            return _round(weight.detach(), self.level, self.format)
        state = (weight.data_ptr(), weight._version)
        if self.kept is None or self.kept[0] != state:
            self.kept = (state, _round(weight, self.level, self.format))
        return self.kept[1]

    def train(self, mode: bool = True) -> HaloLinear:
        """As in torch; evaluation mode forgets the rounded weight."""
        if not mode:
            self.kept = None
        return super().train(mode)

    def extra_repr(self) -> str:
        """As in torch, with level and format."""
        return f"{super().extra_repr()}, level={self.level}, format={self.format!r}"


@torch.no_grad()
def _round(x: Tensor, level: int, format: str) -> Rounded:
    return quantise(hadamard(x) if level else x, format)


# What several layers read, such as the projections to queries, keys and values, is rotated, rounded and saved once.
_INPUTS: Any = WeakTensorKeyDictionary()


def _rounded_input(x: Tensor, dtype: torch.dtype, level: int, format: str) -> Rounded:
    flat = x.detach().reshape(-1, x.shape[-1])
    # Compilers find equal computations themselves. A leaf may be overwritten unseen; what a graph computed is not.
    if torch.compiler.is_compiling() or x.grad_fn is None:
        return _round(flat.to(dtype), level, format)
    key = (x._version, dtype, level, format)
    if x not in _INPUTS or _INPUTS[x][0] != key:
        _INPUTS[x] = (key, _round(flat.to(dtype), level, format))
    return _INPUTS[x][1]  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    """The table above: ``x`` and ``weight`` are here for their gradients, the rounded matrices for their values."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, qx: Tensor, x_scale: Tensor, qw: Tensor, w_scale: Tensor,
        level: int, format: str, dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(qx, x_scale, qw, w_scale)
        ctx.level, ctx.format, ctx.shape, ctx.dtypes = level, format, x.shape, (x.dtype, weight.dtype)
        return scaled_matmul(qx, x_scale, qw.mT, w_scale, dtype=dtype).reshape(*x.shape[:-1], len(qw))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        qx, x_scale, qw, w_scale = ctx.saved_tensors
        x_dtype, w_dtype = ctx.dtypes
        errors = gradient.reshape(-1, gradient.shape[-1])
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        of_x = of_weight = None
        if needs_weight or ctx.level < 2:
            values, scale = quantise(errors, ctx.format)
        if needs_weight:
            of_weight = scaled_matmul(values.mT, scale, qx, x_scale, dtype=w_dtype)
            of_weight = hadamard(of_weight, inverse=True) if ctx.level else of_weight
        if needs_x and ctx.level < 2:
            of_x = scaled_matmul(values, scale, qw, w_scale, dtype=x_dtype)
        elif needs_x:
            values, scale = quantise(_across_tokens(errors), ctx.format)
            of_x = scaled_matmul(values, scale, qw, w_scale, dtype=x_dtype)
            of_x = hadamard(of_x, 0, inverse=True)[: len(errors)]
        if of_x is not None:
            of_x = (hadamard(of_x, inverse=True) if ctx.level else of_x).reshape(ctx.shape)
        return of_x, of_weight, *(None,) * 7


def _across_tokens(errors: Float[Tensor, "tokens outputs"]) -> Float[Tensor, "more outputs"]:
    """H E, below E as many zeros as it takes to have a Hadamard matrix of that order."""
    tokens = len(range(len(errors)))  # a number to compilers too, which may have a symbol for the length
    return hadamard(nn.functional.pad(errors, (0, 0, 0, _next_order(tokens) - tokens)), 0)


@torch.compiler.assume_constant_result
def _next_order(tokens: int) -> int:
    return next(order for order in itertools.count(max(tokens, 1)) if has_hadamard(order))
