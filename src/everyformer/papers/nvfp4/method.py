"""Training in NVFP4 (arXiv 2509.25149, section 4): :func:`convert` lets a model's linear layers compute in four bits.

All three products of a linear layer are those of NVFP4 matrices: the output, the gradient of its input and that of its
weight. They are emulated: operands are quantised and read back, and multiplied in float32, as tensor cores accumulate.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.ops.hadamard import hadamard
from everyformer.ops.nvfp4 import BLOCK, Quantised, dequantise, quantise, values

# The one vector of random signs that turns the Hadamard matrix into a random rotation (appendix E.2).
SIGNS = (1.0, 1.0, -1.0, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The parts of the recipe (section 4), each of which can be left out.

    ``two_dimensional``: a scale for each 16 x 16 tile of a weight, so that both passes see the same weight; else for
    each sixteen values along the product's inner dimension. ``hadamard``: rotate both sides of the weight gradient's
    product, sixteen tokens at a time. ``stochastic``: round gradients stochastically. ``keep_high_precision``: share of
    the blocks that stay as they are, a fifth of them at the front and the rest at the end.
    """

    two_dimensional: bool = True
    hadamard: bool = True
    stochastic: bool = True
    keep_high_precision: float = 0.16

    def __post_init__(self) -> None:
        if not 0 <= self.keep_high_precision <= 1:
            raise ValueError(f"keep_high_precision must be from 0 to 1, got {self.keep_high_precision}")


Skip = Callable[[nn.Module, str], bool]


def convert(model: nn.Module, recipe: Recipe | None = None, *, skip: Skip | None = None) -> nn.Module:
    """Let the linear layers of ``model`` (or GPT-2's ``Conv1D``) compute in NVFP4, in place; returns the model.

    Those of its blocks are converted, but for the first and the last ones by the recipe. What stands outside the blocks
    (embeddings, heads) stays as it is, as do norms and attention itself. Parameters and the state dict stay what they
    were, in the precision of the optimiser; gradients are those of the quantised products.

    Args:
        recipe: the whole recipe by default.
        skip: ``skip(module, name)`` tells further layers to leave alone.

    Raises:
        ValueError: there is no layer to convert, one was converted before, or one has a size that 16 does not divide.
    """
    recipe = recipe or Recipe()
    layers = chosen(model, recipe.keep_high_precision, skip)
    for name, module in layers.items():
        if any(size % BLOCK for size in module.weight.shape):
            shape = tuple(module.weight.shape)
            raise ValueError(f"sizes of a layer must be multiples of {BLOCK}, got {shape} in {name!r}; skip it")
    for module in layers.values():
        swap(module, _NVFP4)
        module.nvfp4 = recipe
    _use_own_layers(model)
    return model


def high_precision_forward(model: nn.Module, enabled: bool = True) -> nn.Module:
    """Compute outputs of a converted model in high precision from now on, and gradients as before (section 4.5)."""
    found = [module for module in model.modules() if isinstance(module, _NVFP4)]
    if not found:
        raise ValueError("model has no layer that nvfp4.convert treated")
    for module in found:
        module.high_precision_forward = enabled
    return model


def linear(
    x: Float[Tensor, "*batch inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    recipe: Recipe,
    high_precision: bool = False,
) -> Float[Tensor, "*batch outputs"]:
    """``F.linear`` whose three products are in NVFP4, or the two of the backward pass with ``high_precision``.

    Of the input backward keeps four bits a value: rotated, in blocks of sixteen tokens. The weight is kept as it is,
    which costs nothing, and quantised again.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    rows = x.reshape(-1, x.shape[-1])
    out = _Linear.apply(rows, weight, recipe, torch.is_grad_enabled(), high_precision)
    out = out.view(*x.shape[:-1], len(weight))
    return out if bias is None else out + bias.to(out.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, recipe: Recipe, training: bool, high_precision: bool
    ) -> Tensor:
        if high_precision:
            out = F.linear(x, weight.to(x.dtype))
        else:
            out = product(_quantise(x), _quantise(weight, recipe.two_dimensional), x.dtype)
        if training:
            ctx.save_for_backward(weight, *_quantise(_by_tokens(x, recipe)))
            ctx.recipe, ctx.dtype = recipe, x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        weight, *tokens = ctx.saved_tensors
        recipe: Recipe = ctx.recipe
        d_x = d_weight = None
        if ctx.needs_input_grad[0]:
            # Tiles give the values of the forward pass again; rows of blocks lie along this product's inner dim.
            turned = _quantise(weight.mT, recipe.two_dimensional)
            d_x = product(_quantise(grad, stochastic=recipe.stochastic), turned, ctx.dtype)
        if ctx.needs_input_grad[1]:
            rows = _quantise(_by_tokens(grad, recipe), stochastic=recipe.stochastic)
            d_weight = product(rows, Quantised(*tokens), weight.dtype)
        return d_x, d_weight, None, None, None


def product(left: Quantised, right: Quantised, dtype: torch.dtype) -> Float[Tensor, "m n"]:
    """left times the transpose of right, accumulated in float32."""
    return (values(left) @ values(right).mT * (left.tensor_scale * right.tensor_scale)).to(dtype)


def _quantise(x: Tensor, two_dimensional: bool = False, *, stochastic: bool = False) -> Quantised:
    """Not checked for infinities, which would wait for the device: they come out as NaN, as in any training."""
    noise = torch.rand(x.shape, device=x.device) if stochastic else None
    return quantise(x, two_dimensional=two_dimensional, noise=noise, check=False)


def _by_tokens(x: Float[Tensor, "tokens n"], recipe: Recipe) -> Float[Tensor, "n padded"]:
    """Tokens last, for a product over them: zeros up to a multiple of sixteen, rotated by the recipe."""
    turned = F.pad(x, (0, 0, 0, -len(x) % BLOCK)).mT
    if not recipe.hadamard:
        return turned
    blocks = turned.float().unflatten(-1, (-1, BLOCK)) * torch.tensor(SIGNS, device=x.device)
    return hadamard(blocks.flatten(-2), block=BLOCK)


class Treatment:
    """Base of the classes that :func:`swap` puts before a layer's own."""


class _NVFP4(Treatment):
    """A linear layer's forward by :func:`linear`."""

    nvfp4: Recipe
    weight: Tensor
    bias: Tensor | None
    high_precision_forward = False

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if isinstance(self, nn.Linear) else self.weight.mT
        return linear(x, weight, self.bias, recipe=self.nvfp4, high_precision=self.high_precision_forward)


def chosen(model: nn.Module, keep: float, skip: Skip | None = None) -> dict[str, Any]:
    """Names and linear layers of the model's blocks, without the first and last of them; see :func:`convert`.

    A block is a member of a list of modules of one class; in a model without such lists each linear layer is one.
    """
    if any(isinstance(module, Treatment) for module in model.modules()):
        raise ValueError("model has been converted before")
    layers = {name: module for name, module in model.named_modules() if _is_linear(module)}
    block_of = {name: _block_of(model, name) for name in layers}
    if not any(block_of.values()):
        block_of = {name: name for name in layers}
    blocks = list(dict.fromkeys(block for block in block_of.values() if block))
    first, last = kept_blocks(len(blocks), keep)
    inner = set(blocks[first : len(blocks) - last])
    found = {
        name: module for name, module in layers.items() if block_of[name] in inner and not (skip and skip(module, name))
    }
    if not found:
        raise ValueError(f"model must have linear layers to convert, got {len(layers)} in {len(blocks)} blocks")
    return found


def kept_blocks(blocks: int, share: float) -> tuple[int, int]:
    """How many blocks stay in high precision at the front and at the end: (2, 8) of the paper's 62.

    At least one does unless the share is zero.
    """
    kept = max(1, round(share * blocks)) if share else 0
    first = round(kept / 5)
    return first, kept - first


def swap(module: nn.Module, treatment: type) -> None:
    """Put ``treatment`` before the module's own class, so that it stays what it is to everyone who asks."""
    module.__class__ = _class_of(treatment, type(module))  # type: ignore[assignment,arg-type]


@functools.cache
def _class_of(treatment: type, original: type) -> type:
    return type(original.__name__, (treatment, original), {"__module__": original.__module__})


def _is_linear(module: nn.Module) -> bool:
    """Linear itself or Conv1D; their subclasses do more than a product, or are read by other modules."""
    return type(module) is nn.Linear or (
        type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"
    )


def _block_of(model: nn.Module, name: str) -> str:
    """The innermost member of a list of equal modules that holds the layer; empty if there is none."""
    found, path, module = "", "", model
    for part in name.split("."):
        parent, module = module, module.get_submodule(part)
        path = f"{path}.{part}" if path else part
        members = [child for child in parent.children() if any(map(_is_linear, child.modules()))]
        alike = len({type(child) for child in members}) == 1
        if isinstance(parent, (nn.ModuleList, nn.Sequential)) and alike and not _is_linear(module):
            found = path
    return found


def _use_own_layers(model: nn.Module) -> None:
    """PyTorch's encoder layer has a fast path for inference that reads the weights past their layers; close it."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0


class PackedLinear(nn.Module):
    """A linear layer for inference whose weight is held in NVFP4: 4.5 bits a value.

    Buffers ``packed``, ``scales`` and ``tensor_scale`` make up the weight, so that ``state_dict`` and safetensors hold
    four-bit weights too. Outputs are computed in the precision of the input.

    Args:
        weight: (outputs, inputs), a multiple of sixteen inputs.
        bias: (outputs,).
        two_dimensional: tiles as in training by the recipe; else a scale for each sixteen inputs, which is closer.
    """

    packed: Tensor
    scales: Tensor
    tensor_scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, two_dimensional: bool = False) -> None:
        super().__init__()
        for name, part in quantise(weight.detach(), two_dimensional=two_dimensional)._asdict().items():
            self.register_buffer(name, part)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight, read anew from its codes."""
        return dequantise(Quantised(self.packed, self.scales, self.tensor_scale))

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """x W^T + b."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def compress(model: nn.Module, *, names: Iterable[str] | None = None) -> nn.Module:
    """Hold weights of linear layers in NVFP4, for inference, in place; returns the model.

    In a model treated by :func:`convert` these are the converted layers, with the weights that training saw; otherwise
    those that it would convert if no block were kept.

    Args:
        names: the layers, to choose them otherwise.

    Raises:
        ValueError: nothing to compress, or a layer whose size 16 does not divide.
    """
    trained = {name: module for name, module in model.named_modules() if isinstance(module, _NVFP4)}
    if names is not None:
        layers: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    else:
        layers = trained or chosen(model, 0.0)
    for name, module in layers.items():
        weight = module.weight if isinstance(module, nn.Linear) else module.weight.mT
        tiled = name in trained and module.nvfp4.two_dimensional
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, PackedLinear(weight, module.bias, two_dimensional=tiled))
    return model
