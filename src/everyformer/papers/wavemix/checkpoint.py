"""State dicts of pranavphoenix/WaveMix to ours and back: the same weights under the authors' names.

What a state dict is of can be told from its weights, but for the stride and the dropout: ``config`` gives the stride,
or names a variant, of which the state must then be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from everyformer.catalog import lookup
from everyformer.papers.wavemix.model import (
    VARIANTS,
    WaveMix,
    WaveMixBackbone,
    WaveMixSegmenter,
    WaveMixUpscaler,
    network_of,
    ours_of,
)
from everyformer.parts import checkpoints

# The authors' names of options, and ours.
OPTIONS = {
    "num_classes": "num_classes",
    "depth": "depth",
    "final_dim": "dim",
    "level": "levels",
    "mult": "mult",
    "ff_channel": "ff_dim",
    "dropout": "dropout",
    "patch_size": "patch_size",
    "stride": "stride",
}
TASKS: dict[str, type[WaveMixBackbone]] = {
    "classification": WaveMix,
    "segmentation": WaveMixSegmenter,
    "super_resolution": WaveMixUpscaler,
}


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> WaveMixBackbone:
    """The network with the authors' weights.

    ``config`` either names a ``variant``, or gives the ``task`` (``classification`` by default, ``segmentation``,
    ``super_resolution``) and the authors' options, of which those that are left out default as theirs do:
    ``initial_conv`` other than ``strided`` is the patch stem, ``level`` other than 2 to 4 is 1.

    Raises:
        ValueError: a key that is missing, unexpected or misshapen (the first is named, and the variants that the state
            would fit), or an option that is not accepted.
    """
    model = _built(config)
    expected = model.state_dict()
    names = {key: ours_of(key, model) for key in state}
    # A key may stand under more than one of the authors' names: it is compared and reported under the first of them.
    given = {_theirs(ours, model) if ours in expected else key: state[key] for key, ours in names.items()}
    shapes = {_theirs(key, model): tensor.shape for key, tensor in expected.items()}
    checkpoints.check(given, shapes, lambda: _fitting(state))
    model.load_state_dict({ours: state[key] for key, ours in names.items()}, strict=True)
    return model


def export(model: WaveMixBackbone) -> dict[str, Tensor]:
    """The weights under the authors' names."""
    return {_theirs(key, model): tensor for key, tensor in model.state_dict().items()}


def replay(model: WaveMixBackbone, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' output ``y`` for their input ``x``."""
    return {"y": model(inputs["x"])}


def _built(config: Mapping[str, Any]) -> WaveMixBackbone:
    if "variant" in config:
        variant = config["variant"]
        return network_of(variant)(**lookup(variant, VARIANTS, "variant"))
    given = dict(config)
    task, stem, level = given.pop("task", "classification"), given.pop("initial_conv", None), given.get("level")
    if task not in TASKS:
        raise ValueError(f"config['task'] must be one of {', '.join(TASKS)}, got {task!r}")
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown:
        raise ValueError(
            f"config must hold task, variant, initial_conv, {', '.join(OPTIONS)}; got {', '.join(unknown)}"
        )
    if level is not None and level not in (2, 3, 4):
        given["level"] = 1
    options = {OPTIONS[name]: value for name, value in given.items()}
    if task == "classification":
        options["stem"] = "strided" if stem == "strided" else "patch"
    return TASKS[task](**options)


def _theirs(key: str, model: WaveMixBackbone) -> str:
    if key.startswith("stem."):
        return key.replace("stem.", "conv.", 1)
    if key.startswith("head."):
        if isinstance(model, WaveMix):
            return key.replace("head.", "pool.2.", 1)
        # The file for Cityscapes keeps the classifier's name for its decoder.
        patch = isinstance(model, WaveMixSegmenter) and model.kind == "patch"
        return key.replace("head.", "pool." if patch else "expand.", 1)
    key = key.replace("blocks.", "layers.", 1).replace(".reduce.", ".reduction.", 1)
    if ".mix." in key and model.levels == 1:
        return key.replace(".mix.0.", ".feedforward.", 1)
    return re.sub(r"\.mix\.(\d)\.", lambda found: f".feedforward{int(found[1]) + 1}.", key)


def _fitting(state: Mapping[str, Tensor]) -> list[str]:
    """The published variants that have just these keys and shapes."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    fitting = []
    for variant, settings in VARIANTS.items():
        with torch.device("meta"):
            model = network_of(variant)(**settings)
        if {key: tuple(tensor.shape) for key, tensor in export(model).items()} == shapes:
            fitting.append(variant)
    return fitting
