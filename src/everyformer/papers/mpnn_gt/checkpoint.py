"""State dicts of Chen-Cai-OSU/MPNN-GT-Connection (folder GraphGPS), to ours and back.

Three kinds are told apart by their keys: a network with a virtual node (``gnn_layers.*``, GatedGCN or GINE), a GPS layer
(``ff_linear1.*``) with a GatedGCN and DeepSets, and a stack of DeepSets layers (``ds.*``). A ``model.`` prefix from
Lightning is taken off. The authors published no trained weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from everyformer.papers.mpnn_gt.model import DeepSetsVN, GatedGCN, GPSLayer, VirtualNode, VirtualNodeNetwork

Model = VirtualNodeNetwork | DeepSetsVN | GPSLayer
CONVS = {"gatedgcnconv": "gatedgcn", "gineconv": "gine"}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Model:
    """The authors' module with the authors' weights.

    Args:
        state: the state dict.
        config: the authors' options. Networks: ``dim``, ``layers``, ``layer_type``, ``residual``, ``vn_residual``,
            ``dropout``. DeepSets: ``d``, ``n_layers``, ``reduction``, ``nonlinear``. GPS layers: ``dim``, ``batch_norm``,
            ``layer_norm``, ``vn_layers``, ``reduction``, ``nonlinear``, ``dropout``.

    Raises:
        ValueError: a missing, unexpected or misshapen key (named), or an option that is missing or not accepted.
    """
    if state and all(key.startswith("model.") for key in state):
        state = {key.removeprefix("model."): value for key, value in state.items()}
    model = _build(config)
    ours = model.state_dict()
    converted: dict[str, Tensor] = {}
    used: set[str] = set()
    for key, names in _names(model):
        parts = []
        for name, part in zip(names, ours[key].chunk(len(names)) if len(names) > 1 else [ours[key]], strict=True):
            shape = tuple(_theirs(name, part).shape)
            if name not in state:
                raise ValueError(f"state lacks the key {name}")
            if tuple(state[name].shape) != shape:
                raise ValueError(f"state key {name} must have shape {shape}, got {tuple(state[name].shape)}")
            parts.append(_ours(name, state[name]))
        converted[key] = torch.cat(parts) if len(parts) > 1 else parts[0]
        used.update(names)
    for name in sorted(set(state) - used):
        raise ValueError(f"state has the unexpected key {name}")
    model.load_state_dict(converted, strict=True)
    return model


def export(model: Model) -> dict[str, Tensor]:
    """The weights under the authors' names.

    Raises:
        TypeError: another kind of model, or one with parts that the authors' code has no place for.
    """
    ours = model.state_dict()
    state: dict[str, Tensor] = {}
    for key, names in _names(model):
        for name, part in zip(names, ours[key].chunk(len(names)) if len(names) > 1 else [ours[key]], strict=True):
            state[name] = _theirs(name, part).clone()
    return state


def replay(model: Model, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' outputs from the authors' inputs: ``y`` of DeepSets on a padded batch, else ``x`` and ``edge_attr``."""
    x = inputs["x"]
    if isinstance(model, DeepSetsVN):
        mask = inputs["mask"]
        batch = mask.nonzero()[:, 0]
        return {"y": torch.zeros_like(x).masked_scatter(mask[..., None], model(x[mask], batch=batch))}
    graph = (x, inputs["edge_index"], inputs["edge_attr"], inputs["batch"])
    nodes, edges = model.forward_with_edges(*graph) if isinstance(model, VirtualNodeNetwork) else model(*graph)
    return {"x": nodes, "edge_attr": inputs["edge_attr"] if edges is None else edges}


def _build(config: Mapping[str, Any]) -> Model:
    if "layer_type" in config:
        if config["layer_type"] not in CONVS:
            raise ValueError(f"config['layer_type'] must be one of {sorted(CONVS)}, got {config['layer_type']!r}")
        return VirtualNodeNetwork(
            _option(config, "dim"),
            _option(config, "layers"),
            CONVS[config["layer_type"]],
            residual=config.get("residual", False),
            dropout=config.get("dropout", 0.0),
            virtual_residual=config.get("vn_residual", False),
        )
    if "global_model" not in config:
        return _deep_sets(config, _option(config, "d"), config.get("n_layers", 1))
    for name, value in (("local", "CustomGatedGCN"), ("global_model", "DSVN")):
        if config.get(name) != value:
            raise ValueError(f"config[{name!r}] must be {value!r}, got {config.get(name)!r}")
    norms = [name for name, default in (("batch", True), ("layer", False)) if config.get(f"{name}_norm", default)]
    if len(norms) > 1:
        raise ValueError("config must ask for one of batch_norm and layer_norm, got both")
    dim, dropout = _option(config, "dim"), config.get("dropout", 0.0)
    vn = _deep_sets(config, dim, config.get("vn_layers", 1))
    return GPSLayer(GatedGCN(dim, dropout), vn, dim, norm=norms[0] if norms else "none", dropout=dropout)


def _deep_sets(config: Mapping[str, Any], dim: int, layers: int) -> DeepSetsVN:
    if not config.get("bn", True):
        raise ValueError(
            "config['bn'] must be true, got false: the authors keep norms in the state that they do not use"
        )
    nonlinear = config.get("nonlinear", "relu")
    # Any other name is the identity in the authors' code.
    activation = nonlinear if nonlinear in ("relu", "elu") else "none"
    return DeepSetsVN(dim, layers, reduce=config.get("reduction", "mean"), activation=activation)


def _option(config: Mapping[str, Any], name: str) -> int:
    if name not in config:
        raise ValueError(f"config must give {name}")
    return int(config[name])


def _names(model: nn.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each of our tensors and the authors' ones that it holds, one after another along the first axis."""
    if isinstance(model, VirtualNodeNetwork):
        yield from _network(model)
    elif isinstance(model, DeepSetsVN):
        yield from _set_layers(model, "", "")
    elif isinstance(model, GPSLayer) and isinstance(model.global_, DeepSetsVN) and model.call is not None:
        yield from _gated("call.conv.", "local_model.")
        yield from _set_layers(model.global_, "global_.", "self_attn.")
        for ours, theirs in (("up", "ff_linear1"), ("down", "ff_linear2")):
            yield from _same(ours, theirs, ("weight", "bias"))
        for ours, theirs in (("norm_local", "norm1_local"), ("norm_global", "norm1_attn"), ("norm_out", "norm2")):
            kept = model.get_submodule(ours).state_dict()
            yield from _same(ours, theirs, tuple(kept))
    else:
        raise TypeError(
            f"model must be a VirtualNodeNetwork, a DeepSetsVN or a GPSLayer of GatedGCN and DeepSetsVN, got {model}"
        )


def _network(model: VirtualNodeNetwork) -> Iterator[tuple[str, tuple[str, ...]]]:
    if model.initial is None:
        raise TypeError("model must have a virtual node, got virtual=False")
    yield "initial", ("virtualnode_embedding.weight",)
    for index, layer in enumerate(model.layers):
        ours, theirs = f"layers.{index}.", f"gnn_layers.{index}."
        conv = layer
        if isinstance(layer, VirtualNode):
            conv, ours = layer.conv, f"{ours}call.conv."
            for place in (0, 1, 3, 4):
                kinds = NORM if place in (1, 4) else ("weight", "bias")
                yield from _same(f"layers.{index}.update.{place}", f"mlp_virtualnode_list.{index}.{place}", kinds)
        if isinstance(conv, GatedGCN):
            yield from _gated(ours, theirs)
        else:
            yield f"{ours}call.conv.eps", (f"{theirs}model.eps",)
            for place in (0, 2):
                yield from _same(f"{ours}call.conv.nn.{place}", f"{theirs}model.nn.{place}", ("weight", "bias"))


def _same(ours: str, theirs: str, kinds: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for kind in kinds:
        yield f"{ours}.{kind}", (f"{theirs}.{kind}",)


def _gated(ours: str, theirs: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for kind in ("weight", "bias"):
        yield f"{ours}nodes.{kind}", tuple(f"{theirs}{letter}.{kind}" for letter in "ABDE")
        yield f"{ours}edges.{kind}", (f"{theirs}C.{kind}",)
    yield from _same(f"{ours}norm_nodes", f"{theirs}bn_node_x", NORM)
    yield from _same(f"{ours}norm_edges", f"{theirs}bn_edge_e", NORM)


def _set_layers(model: DeepSetsVN, ours: str, theirs: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for index in range(len(model.linears)):
        place = f"{theirs}ds.EquivLinear-{index}"
        yield f"{ours}linears.{index}.own.weight", (f"{place}.alpha",)
        yield f"{ours}linears.{index}.own.bias", (f"{place}.bias",)
        yield f"{ours}linears.{index}.pooled.weight", (f"{place}.beta",)
        yield from _same(f"{ours}norms.{index}", f"{theirs}bn_layers.{index}", NORM)


def _theirs(name: str, tensor: Tensor) -> Tensor:
    """Ours in the authors' layout: their set layers multiply from the right, and keep the bias as a row."""
    if name.endswith((".alpha", ".beta")):
        return tensor.T.contiguous()
    return tensor[None] if _is_row(name) else tensor


def _ours(name: str, tensor: Tensor) -> Tensor:
    if name.endswith((".alpha", ".beta")):
        return tensor.T.contiguous()
    return tensor[0] if _is_row(name) else tensor


def _is_row(name: str) -> bool:
    return "ds.EquivLinear-" in name and name.endswith(".bias")
