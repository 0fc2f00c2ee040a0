"""Fewer bits: int8 and int4 through torchao, NVFP4 through this library's own kernels.

Surveyed in arXiv 2307.07982, section 5. Everything acts in place, on the linear layers of the blocks, and returns the model.
Weights of experts that transformers holds in one tensor (Mixtral) are in no linear layer and stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.ops.nvfp4 import BLOCK, Quantised, dequantise, quantise
from everyformer.parts.compress.anatomy import Replacement, check_plain, linears, prepare
from everyformer.parts.compress.pruning import make_permanent


def int8_weights(model: nn.Module, *, names: Iterable[str] | None = None) -> nn.Module:
    """Weights in eight bits with a scale for each output; products in the precision of the input."""
    from torchao.quantization import Int8WeightOnlyConfig

    return _by_torchao(model, Int8WeightOnlyConfig(set_inductor_config=False), names)


def int8_dynamic(model: nn.Module, *, names: Iterable[str] | None = None) -> nn.Module:
    """Weights and inputs in eight bits, inputs with scales that are found as they come; products of integers."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return _by_torchao(model, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False), names)


def int4_weights(model: nn.Module, *, group: int = 32, names: Iterable[str] | None = None) -> nn.Module:
    """Weights in four bits with a scale for each ``group`` of them; products in the precision of the input.

    In memory torchao holds each in a byte, on every device alike; :mod:`everyformer.parts.compress.storage` writes four
    bits.

    Raises:
        ValueError: inputs that ``group`` does not divide.
    """
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    for name, layer in linears(prepare(model), names).items():
        if group < 1 or layer.in_features % group:
            raise ValueError(f"group must divide a layer's inputs, got {group} for {layer.in_features} in {name!r}")
    return _by_torchao(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group)), names)  # type: ignore[attr-defined]


def _by_torchao(model: nn.Module, config: Any, names: Iterable[str] | None) -> nn.Module:
    from torchao.quantization import quantize_

    layers = _plain(model, names)
    first: dict[int, nn.Linear] = {}
    shared = [(layer, first.setdefault(id(layer.weight), layer)) for layer in layers.values()]
    chosen = {id(layer) for layer in first.values()}
    quantize_(model, config, filter_fn=lambda module, name: id(module) in chosen)
    for layer, owner in shared:
        layer.weight = owner.weight
    for layer in layers.values():
        vars(layer).pop("extra_repr", None)  # torchao's, which would show what the weight is read as
        layer.__class__ = TorchaoLinear
    return model


def _plain(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Linear]:
    """The layers to quantise, their masks written into their weights; refused if they were quantised before."""
    layers = linears(prepare(make_permanent(model)), names)
    check_plain(layers)
    return layers


class TorchaoLinear(nn.Linear, Replacement):
    """A linear layer whose weight torchao holds in few bits, of which few operations but the product are known."""

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:  # type: ignore[override]
        """The weight, read anew from its codes."""
        return self._parameters["weight"].dequantize()  # type: ignore[no-any-return, union-attr]

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return F.linear(x, self._parameters["weight"], self.bias)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight={type(self._parameters['weight']).__name__}"


class NVFP4Linear(nn.Module, Replacement):
    """A linear layer whose weight is held in NVFP4 (arXiv 2509.25149): 4.5 bits a value; products as of the input.

    Args:
        layer: whose inputs are a multiple of sixteen.
    """

    packed: Tensor
    scales: Tensor
    tensor_scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        for name, part in quantise(layer.weight.detach())._asdict().items():
            self.register_buffer(name, part)
        self.bias = layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight, read anew from its codes."""
        return dequantise(Quantised(self.packed, self.scales, self.tensor_scale))

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def nvfp4_weights(model: nn.Module, *, names: Iterable[str] | None = None) -> nn.Module:
    """Weights in four bits, in blocks of sixteen with eight-bit scales.

    Raises:
        ValueError: inputs that sixteen does not divide.
    """
    layers = _plain(model, names)
    for name, layer in layers.items():
        if layer.in_features % BLOCK:
            raise ValueError(f"inputs of a layer must be a multiple of {BLOCK}, got {layer.in_features} in {name!r}")
    made: dict[int, NVFP4Linear] = {}
    for name, layer in layers.items():
        if id(layer.weight) not in made:
            made[id(layer.weight)] = NVFP4Linear(layer)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[id(layer.weight)])
    return model
