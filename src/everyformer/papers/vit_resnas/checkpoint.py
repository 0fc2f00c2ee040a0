"""State dicts of yilunliao/vit-search (``nets/vit_sr_supernet.py``), of networks and super-networks, to ours and back.

The authors' weights are under CC BY-NC 4.0: not for commercial use.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from everyformer.papers.vit_resnas.model import LINEAR, VARIANTS, ViTResNAS, resampled
from everyformer.papers.vit_resnas.supernet import Space, StageSpace, SuperNet
from everyformer.parts import checkpoints

# The authors' options that name ours; ``network_def`` is the definition.
OPTIONS = {"distill_token": "distilled", "patch_output": "patch_output", "img_size": "img_size", "in_chans": "in_chans"}
OUTSIDE = {
    "tokens": "tokens",
    "positions": "pos_embed",
    "norm": "norm",
    "head": "cls_head",
    "distill_head": "dst_head",
    "patch_head": "patch_head",
    "patches.proj": "patch_embed.conv_proj",
    **{
        f"patches.{ours}.{index}": f"patch_embed.conv{number}.{theirs}"
        for number, ours in ((1, "first"), (2, "rest.0"), (3, "rest.1"))
        for index, theirs in enumerate(("conv", "bn"))
    },
}
INSIDE = {
    "reduction.positions": "pos_embed",
    "reduction.norm": "norm",
    "reduction.conv": "patch_reduce",
    "reduction.token_proj": "token_transform",
    "attention": "attn",
}


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> ViTResNAS | SuperNet:
    """The network, or the super-network where ``config`` has a ``space``, with the authors' weights.

    Tables of positions for another size of pictures are interpolated, to fine-tune at a higher resolution.

    Args:
        state: the state dict.
        config: ``variant``, the authors' ``network_def``, or ``space``: a :class:`Space`, or its fields; beside it
            ``img_size``, ``in_chans``, ``num_classes``, ``distill_token``, ``patch_output`` and ``drop_path_rate``.

    Raises:
        ValueError: a missing, unexpected or misshapen key (the first is named, and the variant that would fit), an
            option that is unknown.
    """
    model = _build(config)
    network = model.network if isinstance(model, SuperNet) else model
    ours = network.state_dict()
    names = {key: _name(network, key) for key in ours}
    shapes = {names[key]: tensor.shape for key, tensor in ours.items()}
    state = dict(state)
    for table, front in _tables(network):
        if names[table] in state:
            state[names[table]] = _fitted(state[names[table]], ours[table], front)
    checkpoints.check(state, shapes, lambda: _fitting(state))
    network.load_state_dict({key: _rows(network, key, state[name], True) for key, name in names.items()}, strict=True)
    return model


def export(model: ViTResNAS | SuperNet) -> dict[str, Tensor]:
    """The weights under the authors' names."""
    network = model.network if isinstance(model, SuperNet) else model
    return {
        _name(network, key): _rows(network, key, tensor, False).contiguous()
        for key, tensor in network.state_dict().items()
    }


def replay(model: ViTResNAS | SuperNet, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' outputs from ``x``: logits ``y``, those of two tokens together as ``both``, of patches as ``patch``.

    With one picture ``x_larger`` also ``y_larger``, positions interpolated. Of a super-network: ``full_y``, and of the
    ``subnet`` in
    ``config``, by masks and extracted, logits and patches' logits; also weights of block 0 after sorting.
    """
    if isinstance(model, SuperNet):
        return _replay_super(model, inputs["x"], config["subnet"])
    x = inputs["x"]
    outputs: dict[str, Tensor] = {}
    if model.distilled:
        outputs["both"] = torch.stack(model(x), dim=1)
    else:
        outputs["y"] = model(x)
    if model.patch_output:
        outputs["patch"] = _patches(model, x)
    if "x_larger" in inputs:
        (outputs["y_larger"],) = model(inputs["x_larger"])
    return outputs


def _replay_super(model: SuperNet, x: Tensor, subnet: Any) -> dict[str, Tensor]:
    extracted = model.extract(subnet)
    outputs = {"full_y": model(x), "masked_y": model(x, [subnet]), "subnet_y": extracted(x)}
    outputs["subnet_patch"] = _patches(extracted, x)
    # Patches' logits are for training; the batch norms stay in evaluation.
    model.network.training = True
    outputs["masked_patch"] = model(x, [subnet])[1]
    model.network.training = False
    model.sort_by_importance()
    state = export(model)
    outputs["sorted_block0_qkv"] = state["blocks.0.attn.qkv.weight"]
    outputs["sorted_block0_fc1"] = state["blocks.0.mlp.fc1.weight"]
    return outputs


def _patches(model: ViTResNAS, x: Tensor) -> Tensor:
    return model.patch_head(model.forward_features(x)[:, model.tokens_in_front :])


def _build(config: Mapping[str, Any]) -> ViTResNAS | SuperNet:
    kinds = [kind for kind in ("variant", "network_def", "space") if kind in config]
    unknown = sorted(set(config) - set(OPTIONS) - {*kinds, "num_classes", "drop_path_rate", "subnet"})
    if unknown:
        raise ValueError(f"config has the unknown option {unknown[0]}")
    if len(kinds) != 1:
        raise ValueError(f"config must give one of variant, network_def and space, got {kinds or 'none'}")
    options = {ours: config[theirs] for theirs, ours in OPTIONS.items() if theirs in config}
    options |= {name: config[name] for name in ("num_classes", "drop_path_rate") if name in config}
    if "space" in config:
        space = config["space"]
        if not isinstance(space, Space):
            stages = tuple(
                StageSpace._make(tuple(entry) if isinstance(entry, list) else entry for entry in stage)
                for stage in space["stages"]
            )
            space = Space(**{**space, "stages": stages})
        sizes = {name: options.pop(name) for name in ("num_classes", "img_size", "in_chans") if name in options}
        return SuperNet(dataclasses.replace(space, **sizes), **options)
    if "variant" in config:
        if config["variant"] not in VARIANTS:
            raise ValueError(f"config['variant'] must be one of {list(VARIANTS)}, got {config['variant']!r}")
        return ViTResNAS(stages=VARIANTS[config["variant"]], **options)
    return ViTResNAS(config["network_def"], **options)


def _name(network: ViTResNAS, key: str) -> str:
    """The authors' name of one of our keys; they number reductions and blocks together."""
    if network.definition[0][0] == LINEAR:
        key = re.sub(r"^patches\.", "patch_embed.proj.", key)
    if match := re.fullmatch(r"stages\.(\d+)\.(reduction|blocks\.(\d+))\.(.*)", key):
        stages: Any = network.stages
        before = sum(len(stage.blocks) for stage in stages[: int(match[1])])
        index = before + int(match[1]) + (int(match[3]) if match[3] else -1)
        rest = match[4] if match[3] else f"reduction.{match[4]}"
        return f"blocks.{index}.{_translated(rest, INSIDE)}"
    return _translated(key, OUTSIDE)


def _translated(key: str, table: Mapping[str, str]) -> str:
    for ours, theirs in table.items():
        if key == ours or key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    return key


def _rows(network: ViTResNAS, key: str, tensor: Tensor, load: bool) -> Tensor:
    """Rows of qkv: theirs by query, key, value and then head; ours by head first."""
    if ".attention.qkv." not in key:
        return tensor
    attention: Any = network.get_submodule(key.partition(".qkv.")[0])
    groups = (3, attention.heads) if load else (attention.heads, 3)
    return tensor.unflatten(0, (*groups, attention.head_dim)).transpose(0, 1).flatten(0, 2)


def _tables(network: ViTResNAS) -> Iterator[tuple[str, int]]:
    """Our names of the tables of positions, and how many extra tokens each begins with."""
    yield "positions", network.tokens_in_front
    for index in range(1, len(network.stages)):
        yield f"stages.{index}.reduction.positions", 0


def _fitted(table: Tensor, ours: Tensor, front: int) -> Tensor:
    """A table for square pictures of another size; anything else is left for the check to refuse."""
    if table.ndim != 3 or table.shape[2] != ours.shape[2] or table.shape == ours.shape:
        return table
    old, new = (round((count - front) ** 0.5) for count in (table.shape[1], ours.shape[1]))
    if old < 1 or [old**2 + front, new**2 + front] != [table.shape[1], ours.shape[1]]:
        return table
    return torch.cat([table[:, :front], resampled(table[:, front:], (old, old), (new, new))], dim=1)


def _fitting(state: Mapping[str, Tensor]) -> list[str]:
    """The published networks that have the keys of ``state``, with the shapes that do not hang on pictures or classes."""

    def fits(name: str) -> bool:
        with torch.device("meta"):
            expected = export(ViTResNAS(stages=VARIANTS[name]))
        blocks, found = (
            {key: tensor.shape for key, tensor in one.items() if key[:7] == "blocks." and "pos_embed" not in key}
            for one in (expected, state)
        )
        return blocks == found

    return [name for name in VARIANTS if fits(name)]
