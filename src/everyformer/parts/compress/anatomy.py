"""Where a model's blocks, linear layers and attention heads are, whoever wrote it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Projections of an attention module, and its output: of the module itself, or (BERT) beside it.
_LAYOUTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("q_proj", "k_proj", "v_proj"), ("o_proj", "out_proj")),
    (("query", "key", "value"), ("out",)),
    (("q_lin", "k_lin", "v_lin"), ("out_lin",)),
    (("qkv",), ("proj", "out")),
    (("c_attn",), ("c_proj",)),
)
_COUNTS = ("heads", "num_heads", "num_attention_heads", "n_heads")
_GROUPS = ("kv_heads", "num_kv_heads", "num_key_value_heads")
_WIDTHS = ("all_head_size", "attn_dim", "split_size")


class Replacement:
    """What stands in a linear layer's place: called as it, with ``in_features``, ``out_features``, ``weight``, ``bias``.

    Some layers are not called but read, so ``weight`` is what a call multiplies by, however it is held.
    """


def _conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def few_bits(module: nn.Module) -> bool:
    """Whether a module is a linear layer whose weight is held in few bits, not in factors."""
    return isinstance(module, Replacement) and not list(module.children())


def _linear(module: Any) -> bool:
    return isinstance(module, (nn.Linear, Replacement)) or _conv1d(module)


def _features(layer: Any) -> tuple[int, int]:
    """Inputs and outputs."""
    return (layer.nx, layer.nf) if _conv1d(layer) else (layer.in_features, layer.out_features)


def check_share(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a share from 0 to below 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be from 0 to below 1, got {value}")


def prepare(model: nn.Module) -> nn.Module:
    """Make GPT-2's ``Conv1D`` plain linear layers, and close PyTorch's fast path that reads weights past their layers.

    In place; outputs stay what they were, weights of the former are turned.
    """
    for parent in list(model.modules()):
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0
        for name, child in list(parent.named_children()):
            if _conv1d(child):
                weight: Any = child.weight
                inputs, outputs = weight.shape
                layer = nn.Linear(inputs, outputs, device=weight.device, dtype=weight.dtype)
                layer.weight = nn.Parameter(weight.detach().mT.contiguous(), requires_grad=weight.requires_grad)
                layer.bias = child.bias  # type: ignore[assignment]
                setattr(parent, name, layer)
    return model


def blocks(model: nn.Module) -> tuple[str, nn.ModuleList | nn.Sequential]:
    """Name and list of a model's blocks: its longest list of modules of one class that hold linear layers.

    Raises:
        ValueError: the model has no such list.
    """
    found = _lists(model)
    if not found:
        raise ValueError(f"model must have a list of equal blocks, got {type(model).__name__} without one")
    name = max(found, key=lambda name: len(found[name]))
    return name, found[name]


def _lists(model: nn.Module) -> dict[str, nn.ModuleList | nn.Sequential]:
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module):
            first = module[0]
            alike = len({type(child) for child in module}) == 1 and not _linear(first)
            if alike and any(_linear(inner) for inner in first.modules()):
                found[name] = module
    return {name: module for name, module in found.items() if len(module) > 1} or found


def norm_widths(module: nn.Module) -> list[int]:
    """Widths of the norms inside a module, in order."""
    norms = [inner for inner in module.modules() if "norm" in type(inner).__name__.lower()]
    weights = [getattr(norm, "weight", None) for norm in norms]
    return [len(weight) for weight in weights if isinstance(weight, Tensor) and weight.dim() == 1]


def linears(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, nn.Linear]:
    """The linear layers that compressors treat: those of blocks, or of the whole model where it has no blocks.

    Layers whose weight is an embedding's, and subclasses of ``nn.Linear``, which others read, are left out. A layer that
    was replaced by several counts as these. Compressors :func:`prepare` a model before.

    Args:
        names: of layers, to choose them otherwise.

    Raises:
        ValueError: there are none, or a name is not that of a linear layer.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    every = {
        name: module
        for name, module in model.named_modules()
        if few_bits(module) or ((type(module) is nn.Linear or _conv1d(module)) and id(module.weight) not in tables)
    }
    if names is not None:
        wanted = list(names)
        if unknown := [name for name in wanted if name not in every]:
            raise ValueError(f"names must be of linear layers of the model, got {unknown[0]!r}")
        return {name: every[name] for name in wanted}
    lists = tuple(f"{name}." if name else "" for name in _lists(model))
    chosen = {name: module for name, module in every.items() if name.startswith(lists)} if lists else every
    if not chosen:
        raise ValueError(f"model must have linear layers to compress, got {type(model).__name__} without")
    return chosen  # type: ignore[return-value]


def check_plain(layers: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if the weight of a layer is not held as plain numbers."""
    for name, layer in layers.items():
        replaced = isinstance(layer, Replacement)
        held = layer._parameters.get("weight", layer) if replaced else layer.weight.data
        if replaced or type(held) is not Tensor or not held.is_floating_point():
            raise ValueError(f"weights must be plain numbers to compress, got {type(held).__name__} in {name!r}")


@dataclasses.dataclass
class Heads:
    """An attention module whose heads can be taken apart.

    Attributes:
        name, module: the module that holds the projections.
        projections: names of query, key and value, or of the one layer in which they stand one after the other.
        owner, out: the module that holds the output's layer, and its name there.
        head_dim: width of a head.
    """

    name: str
    module: nn.Module
    projections: tuple[str, ...]
    owner: nn.Module
    out: str
    head_dim: int

    @property
    def output(self) -> Any:
        """The layer that reads the heads, one after the other."""
        return getattr(self.owner, self.out)

    @property
    def count(self) -> int:
        """Heads of the queries."""
        return _features(self.output)[0] // self.head_dim

    @property
    def groups(self) -> int:
        """Heads of keys and values: what can go on its own, with the queries that it serves."""
        outputs = _features(getattr(self.module, self.projections[len(self.projections) // 2]))[1]
        return outputs // self.head_dim if len(self.projections) == 3 else (outputs // self.head_dim - self.count) // 2

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The projections and the output's layer."""
        projections = {f"{self.name}.{part}": getattr(self.module, part) for part in self.projections}
        return {**projections, f"output of {self.name}": self.output}

    def project(self, x: Float[Tensor, "batch tokens dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each (batch, its heads, tokens, head_dim), before any positions."""
        parts = [
            getattr(self.module, name)(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for name in self.projections
        ]
        if len(parts) == 3:
            return parts[0], parts[1], parts[2]
        groups = (parts[0].shape[1] - self.count) // 2
        return parts[0].split([self.count, groups, groups], dim=1)  # type: ignore[return-value]

    def keep(self, chosen: list[int]) -> None:
        """Keep only some of the groups, in place: every matrix becomes smaller."""
        queries = self.count // self.groups
        whole, groups = torch.arange(self.count * self.head_dim), self.groups
        device = self.output.weight.device
        rows = whole.view(groups, -1)[chosen].flatten().to(device)
        pairs = torch.arange(groups * self.head_dim).view(groups, -1)[chosen].flatten().to(device)
        if len(self.projections) == 3:
            for name, kept in zip(self.projections, (rows, pairs, pairs), strict=True):
                _cut(getattr(self.module, name), kept, 0)
        else:
            keys = len(whole) + pairs
            _cut(getattr(self.module, self.projections[0]), torch.cat([rows, keys, keys + groups * self.head_dim]), 0)
        _cut(self.output, rows, 1)
        for names, value in (
            (_COUNTS, len(chosen) * queries),
            (_GROUPS, len(chosen)),
            (_WIDTHS, len(chosen) * queries * self.head_dim),
        ):
            for name in names:
                if hasattr(self.module, name):
                    setattr(self.module, name, value)


def _cut(layer: nn.Linear, kept: Tensor, dim: int) -> None:
    layer.weight = nn.Parameter(layer.weight.detach().index_select(dim, kept), layer.weight.requires_grad)
    if dim == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[kept], layer.bias.requires_grad)
    layer.out_features, layer.in_features = layer.weight.shape


def attentions(model: nn.Module) -> dict[str, Heads]:
    """The attention modules whose heads are independent of each other, by their names.

    Modules with parameters for each head beside the projections (relative positions, gates) are not among them.

    Raises:
        ValueError: the model has none.
    """
    found = {}
    for name, module in model.named_modules():
        for projections, outs in _LAYOUTS:
            if all(_linear(getattr(module, part, None)) for part in projections):
                owner, out = _output_of(model, name, module, outs)
                width = _head_dim(module, _features(getattr(owner, out))[0]) if out else 0
                if width and _plain(module, owner, (*projections, out), width):
                    found[name] = Heads(name, module, projections, owner, out, width)
    if not found:
        raise ValueError(f"model must have attention with heads of its own, got {type(model).__name__} without any")
    return found


def _output_of(model: nn.Module, name: str, module: nn.Module, outs: tuple[str, ...]) -> tuple[nn.Module, str]:
    for out in outs:
        if _linear(getattr(module, out, None)):
            return module, out
    beside: Any = getattr(model.get_submodule(name.rpartition(".")[0]), "output", None) if "." in name else None
    return (beside, "dense") if _linear(getattr(beside, "dense", None)) else (module, "")


def _head_dim(module: nn.Module, width: int) -> int:
    for name in ("head_dim", "attention_head_size"):
        if isinstance(getattr(module, name, None), int):
            return int(getattr(module, name))
    counts = [getattr(module, name) for name in _COUNTS if isinstance(getattr(module, name, None), int)]
    return width // counts[0] if counts else 0


def _plain(module: nn.Module, owner: nn.Module, layers: tuple[str, ...], head_dim: int) -> bool:
    known = {id(tensor) for layer in layers[:-1] for tensor in getattr(module, layer).parameters()}
    known |= {id(tensor) for tensor in getattr(owner, layers[-1]).parameters()}
    return all(id(tensor) in known or tensor.shape == (head_dim,) for tensor in module.parameters())
