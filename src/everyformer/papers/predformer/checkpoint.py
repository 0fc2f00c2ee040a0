"""State dicts of yyyujintang/PredFormer (``openstl/models/PredFormer_*.py``), to ours and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from everyformer.papers.predformer.model import Arrangement, PredFormer
from everyformer.parts import checkpoints

# Each of the authors' files: our name of the arrangement, and what it calls the stages of a layer.
VARIANTS: dict[str, tuple[Arrangement, tuple[str, ...]]] = {
    "FullAttention": ("full", ("space_temporal_transformer",)),
    "FacST": ("fac_st", ("space_transformer", "temporal_transformer")),
    "FacTS": ("fac_ts", ("temporal_transformer", "space_transformer")),
    "Binary_TS": ("ts", ("ts_temporal_transformer", "ts_space_transformer")),
    "Binary_ST": ("st", ("st_space_transformer", "st_temporal_transformer")),
    "Triplet_TST": (
        "tst", ("temporal_transformer_first", "space_transformer", "temporal_transformer_second")
    ),
    "Triplet_STS": (
        "sts", ("space_transformer_first", "temporal_transformer", "space_transformer_second")
    ),
    "Quadruplet_TSST": (
        "tsst",
        ("ts_temporal_transformer", "ts_space_transformer", "st_space_transformer", "st_temporal_transformer"),
    ),
    "Quadruplet_STTS": (
        "stts",
        ("st_space_transformer", "st_temporal_transformer", "ts_temporal_transformer", "ts_space_transformer"),
    ),
}  # fmt: skip
NAMES = (
    (r"^embed\.", "to_patch_embedding.1."),
    (r"^norm\.", "mlp_head.0."),
    (r"^head\.", "mlp_head.1."),
    (r"\.blocks\.", ".layers."),
    (r"\.norm1\.", ".0.norm."),
    (r"\.attention\.qkv\.", ".0.fn.to_qkv."),
    (r"\.attention\.out\.", ".0.fn.to_out."),
    (r"\.norm2\.", ".1.norm."),
    (r"\.mlp\.out\.", ".1.fn.fc2."),
)
OPTIONS = {
    "patch_size": "patch_size",
    "dim": "dim",
    "heads": "heads",
    "dim_head": "head_dim",
    "scale_dim": "mlp_scale",
    "dropout": "dropout",
    "attn_dropout": "attention_dropout",
    "drop_path": "drop_path",
}
SHAPE = ("pre_seq", "num_channels", "height", "width")


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> PredFormer:
    """The authors' model with the authors' weights.

    Args:
        state: the state dict.
        config: the authors' ``model_config``, and under ``variant`` which of their files it is for, such as
            ``Quadruplet_TSST``.

    Raises:
        ValueError: a missing, unexpected or misshapen key (the first is named), an option that is missing or unknown.
    """
    known = {*SHAPE, *OPTIONS, "Ndepth", "variant"}
    if missing := sorted(known - set(config)):
        raise ValueError(f"config lacks the option {missing[0]}")
    # The number of frames to predict is the number of frames given, whatever after_seq says.
    if unknown := sorted(set(config) - known - {"depth", "after_seq"}):
        raise ValueError(f"config has the unknown option {unknown[0]}")
    if config["variant"] not in VARIANTS:
        raise ValueError(f"config['variant'] must be one of {', '.join(VARIANTS)}, got {config['variant']!r}")
    name, stages = VARIANTS[config["variant"]]
    deep = name in ("full", "fac_st", "fac_ts")
    model = PredFormer(
        tuple(config[key] for key in SHAPE),  # type: ignore[arg-type]
        spec="J" if name == "full" else name.removeprefix("fac_").upper(),
        layers=1 if deep else config["Ndepth"],
        depth=config["Ndepth"] if deep else config.get("depth", 1),
        reorder=name != "fac_st",
        **{ours: config[theirs] for theirs, ours in OPTIONS.items()},
    )
    ours = {key: [(name, part.shape) for name, part in _as_theirs(key, tensor, stages, deep)]
            for key, tensor in model.state_dict().items()}  # fmt: skip
    checkpoints.check(state, {name: shape for parts in ours.values() for name, shape in parts})
    model.load_state_dict({key: torch.cat([state[name] for name, _ in parts]) for key, parts in ours.items()})
    return model


def export(model: PredFormer) -> dict[str, Tensor]:
    """The weights under the authors' names.

    Raises ``ValueError`` if the model is none of the authors' nine arrangements, or not gated.
    """
    if any(".mlp.0." in key for key in model.state_dict()):
        raise ValueError("model must be gated: the authors' code has no layout for plain feed-forward layers")
    # A binary layer that stands alone with deep stages is what the authors call factorised, S-T apart: theirs differs.
    depth, layers = len(model.stages[0].blocks), len(model.stages) // len(model.spec)  # type: ignore[arg-type]
    deep = not model.reorder or model.spec == "J" or (model.spec == "TS" and layers == 1 and depth > 1)
    wanted = "full" if model.spec == "J" else ("fac_" if deep else "") + model.spec.lower()
    stages = next((stages for name, stages in VARIANTS.values() if name == wanted), None)
    if stages is None or (deep and layers > 1):
        raise ValueError(f"model must be one of the authors' arrangements, got {layers} layers of {model.spec}")
    named = (part for key, tensor in model.state_dict().items() for part in _as_theirs(key, tensor, stages, deep))
    return {name: tensor.contiguous() for name, tensor in named}


def replay(model: PredFormer, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' ``forward``."""
    return {"y": model(inputs["x"])}


def _as_theirs(key: str, tensor: Tensor, stages: tuple[str, ...], deep: bool) -> list[tuple[str, Tensor]]:
    """One of our tensors as theirs: their names, and two tensors where ours holds gate and value."""

    def stage(match: re.Match[str]) -> str:
        layer, place = divmod(int(match[1]), len(stages))
        return f"{'' if deep else f'blocks.{layer}.'}{stages[place]}."

    name = key
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    name = re.sub(r"^stages\.(\d+)\.", stage, name)
    if ".mlp.gate_value." in name:
        return [(name.replace("mlp.gate_value", f"1.fn.{half}"), part)
                for half, part in zip(("fc1_g", "fc1_x"), tensor.chunk(2), strict=True)]  # fmt: skip
    return [(name, tensor)]
