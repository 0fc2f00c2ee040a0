"""The authors' SReT weights (szq0214/SReT), to ours and back.

A shared block stands in their state dict once for each of its applications, with equal values: one is kept, the others
must agree. Sliced, unsliced and distilled files have one layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from everyformer.papers.sret.model import VARIANTS, SReT, create, soft_distillation_loss
from everyformer.parts import checkpoints


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> SReT:
    """The authors' model with the authors' weights.

    Args:
        state: the state dict.
        config: ``{"model": "sret_t"}`` for a published variant, further entries being options of :class:`SReT`; or the
            authors' own arguments: ``image_size``, ``base_dims``, ``depth``, ``recursive_num``, ``groups1`` and
            ``groups2`` where sliced, ``heads``, ``mlp_ratio``, ``np_mlp_ratio``, ``num_classes``.

    Raises:
        ValueError: a missing, unexpected or misshapen key (named, with the published variant that would fit), copies of
            a shared block that differ, or an argument that is missing.
    """
    if "model" in config:
        model = create(**{"name" if key == "model" else key: value for key, value in config.items()})
    else:
        model = _build(config)
    fill(model, state)
    return model


def fill(model: SReT, state: Mapping[str, Tensor]) -> None:
    """Copy the authors' weights into a model; raises ``ValueError`` like :func:`load`."""
    ours = model.state_dict()
    expected = {theirs: key for key, names in _names(model) for theirs in names}
    shapes = {theirs: ours[key].shape for theirs, key in expected.items()}
    checkpoints.check(state, shapes, lambda: fitting(state))
    for key, (first, *copies) in _names(model):
        for copy in copies:
            if not torch.equal(state[first], state[copy]):
                raise ValueError(f"state keys {first} and {copy} belong to one shared block and must be equal")
        ours[key] = state[first]
    model.load_state_dict(ours)


def export(model: SReT) -> dict[str, Tensor]:
    """The weights under the authors' names, a shared block once for each of its applications."""
    ours = model.state_dict()
    return {theirs: ours[key].clone() for key, names in _names(model) for theirs in names}


def replay(model: SReT, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' outputs from the authors' inputs: ``y`` from ``x``, and ``loss`` from two sets of logits.

    ``permutation0``, ``permutation1`` ... are the permutations they drew, in order of use.
    """
    drawn = iter([inputs[f"permutation{index}"] for index in range(sum(key[:11] == "permutation" for key in inputs))])
    stages: Any = model.stages
    for stage in stages:
        for recursive in stage:
            recursive.block.attention.permutation = lambda tokens: next(drawn)
    outputs = {"y": model(inputs["x"])}
    if "student_logits" in inputs:
        loss = soft_distillation_loss(inputs["student_logits"], inputs["teacher_logits"])
        outputs["loss"] = loss.reshape(1)
    return outputs


def fitting(state: Mapping[str, Tensor]) -> list[str]:
    """The published variants whose weights have the names and shapes of ``state``."""
    found = []
    for name in VARIANTS:
        with torch.device("meta"):
            model = create(name, num_classes=len(state["head.bias"]) if "head.bias" in state else 0)
        ours = model.state_dict()
        shapes = {theirs: ours[key].shape for key, names in _names(model) for theirs in names}
        if shapes == {key: value.shape for key, value in state.items()}:
            found.append(name)
    return found


def _build(config: Mapping[str, Any]) -> SReT:
    needed = ("image_size", "base_dims", "depth", "recursive_num", "heads", "mlp_ratio", "np_mlp_ratio")
    missing = [key for key in needed if key not in config]
    if missing:
        raise ValueError(f"config must give {', '.join(missing)}, or a published variant as model")
    if len(set(config["base_dims"])) != 1:
        raise ValueError(f"config must give the same base_dims in all stages, got {config['base_dims']}")
    return SReT(
        img_size=config["image_size"],
        base_dim=config["base_dims"][0],
        heads=config["heads"],
        depths=config["depth"],
        blocks=config["recursive_num"],
        mlp_ratio=config["mlp_ratio"],
        projection_ratio=config["np_mlp_ratio"],
        groups=(config["groups1"], config["groups2"]) if "groups1" in config else None,
        permutation="random",
        num_classes=config.get("num_classes", 1000),
    )


MLP = {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
BLOCK = {"norm1": "norm1", "attention.qkv": "attn.qkv", "attention.out": "attn.proj", "norm2": "norm2", **MLP}
BLOCK_SCALARS = {"residual1.keep": 1, "residual1.add": 2, "residual2.keep": 3, "residual2.add": 4}
PROJECTION = {"norm": "norm1", **MLP}
PROJECTION_SCALARS = {"residual.keep": 1, "residual.add": 2}


def _names(model: SReT) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each of our keys, and the authors' keys that hold its value."""
    yield "position", ("pos_embed",)
    for layer in range(3):
        for kind in ("weight", "bias"):
            yield f"stem.{3 * layer}.{kind}", (f"patch_embed.conv{layer + 1}.{kind}",)
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            yield f"stem.{3 * layer + 1}.{kind}", (f"patch_embed.bn{layer + 1}.{kind}",)
    stages: Any = model.stages
    for stage, blocks in enumerate(stages):
        loops = blocks[0].loops
        for index in range(len(blocks)):
            # Their list alternates a block's application and its projection.
            places = [2 * (index * loops + loop) for loop in range(loops)]
            ours, theirs = f"stages.{stage}.{index}", f"transformers.{stage}.blocks"
            yield from _module(f"{ours}.block", [f"{theirs}.{place}" for place in places], BLOCK, BLOCK_SCALARS)
            for loop, place in enumerate(places):
                projection = [f"{theirs}.{place + 1}"]
                yield from _module(f"{ours}.between.{loop}", projection, PROJECTION, PROJECTION_SCALARS)
        if stage:
            for kind in ("weight", "bias"):
                yield f"downsamples.{stage}.{kind}", (f"pools.{stage - 1}.conv.{kind}",)
    for name in ("norm", "head") if model.num_classes else ("norm",):
        for kind in ("weight", "bias"):
            yield f"{name}.{kind}", (f"{name}.{kind}",)


def _module(
    ours: str, theirs: list[str], layers: Mapping[str, str], scalars: Mapping[str, int]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, other in layers.items():
        for kind in ("weight", "bias"):
            yield f"{ours}.{name}.{kind}", tuple(f"{place}.{other}.{kind}" for place in theirs)
    for name, number in scalars.items():
        yield f"{ours}.{name}", tuple(f"{place}.coefficient{number}.bias" for place in theirs)
